"""ELIC as a codec: pixels, network, entropy coder, container.

    image --pad to 64--> g_a --> y, z --hyperprior coder--> payload --container--> bytes, and back

g_a and g_s run in float32 or bfloat16, on any device; everything between the symbols runs in `entropy`, on the CPU, exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.bitstream import Container
from icmbench.codecs.diffusion.backbone.files import PRETRAINED

if TYPE_CHECKING:
    from torch import Tensor

    from icmbench.codecs.entropy.hyperprior import HyperpriorCoder

LAMBDAS = (0.004, 0.008, 0.016, 0.032, 0.15, 0.45)
_STRIDE = 64


class Elic:
    """ELIC (CVPR 2022), the learned codec that the papers compare with.

    point: the lambda its weights were trained with, or a label. weights: a file in CompressAI's, Chandelier's or this project's
    layout, in which "{point}" stands for the point, or a folder that `icmbench train` wrote; or "tiny": what comes with the
    package for demonstration, points 0.004 to 0.032. variant: official or chandelier; None takes what the file holds. dtype:
    float32 or bfloat16, of the transforms. mode: default streams decode on the machine that made them, portable ones anywhere.
    CodecError.
    """

    name = "elic"
    extra = "learned"
    weights = (
        "small ones for demonstration come with the package (set: {weights: tiny}); Elic2022Official or Elic2022Chandelier state "
        "dicts, trained by yourself or by their authors (set: {weights: PATH})"
    )
    default_points = LAMBDAS
    version = 1

    def __init__(
        self,
        point: float | str = LAMBDAS[0],
        *,
        weights: str | Path | None = None,
        variant: Literal["official", "chandelier"] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        mode: Literal["default", "portable"] = "default",
        device: str = "cpu",
    ) -> None:
        if weights is None:
            raise CodecError(
                "elic needs weights; set weights: PATH, with {point} where files of several points differ, or tiny, for a first try"
            )
        if dtype not in ("float32", "bfloat16"):
            raise CodecError(f"elic runs in float32 or bfloat16, not in {dtype!r}")
        import torch

        from icmbench.codecs import elic_model

        path = PRETRAINED / "tiny" if weights == "tiny" else Path(str(weights).replace("{point}", str(point)))
        if path.is_dir():
            path /= elic_model.file_name(point)
        self.point = RatePoint.of("lambda", point) if isinstance(point, int | float) else RatePoint(point, 0.0, {"point": point})
        self.mode = mode
        self._torch = torch
        self._dtype, self._device = getattr(torch, dtype), torch.device(device)
        network = elic_model.load(path, variant)
        self._weights_check = elic_model.digest(network)
        self._coders: dict[str, HyperpriorCoder] = {}
        self._network = network
        self._coder(mode)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self._analysis = network.g_a.to(self._device, self._dtype, **layout)
        self._synthesis = network.g_s.to(self._device, self._dtype, **layout)
        self._hyper_analysis = network.h_a.to(self._device, **layout)
        self.deterministic = self._device.type == "cpu"
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            weights=file_sha256(path),
            variant=network.variant,
            dtype=dtype,
            mode=mode,
            device=self._device.type,
            torch=torch.__version__,
        )

    def compress(self, image: Image) -> bytes:
        """A whole stream. CodecError for anything but a uint8 RGB image, and where decoding would not give its symbols back."""
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise CodecError(f"elic codes uint8 RGB images of height x width x 3, not {image.dtype} {image.shape}")
        height, width = image.shape[:2]
        padded = np.zeros((-(-height // _STRIDE) * _STRIDE, -(-width // _STRIDE) * _STRIDE, 3), np.uint8)
        padded[:height, :width] = image
        torch = self._torch
        with torch.inference_mode():
            x = torch.from_numpy(padded).to(self._device).permute(2, 0, 1)[None]  # channels-last already
            y = self._analysis((x.float() / 255).to(self._dtype)).float()
            coded = self._coder(self.mode).compress(y, self._hyper_analysis(y))
        return Container(
            codec=self.name,
            model=LAMBDAS.index(self.point.order) + 1 if self.point.order in LAMBDAS else 0,
            width=width,
            height=height,
            payload=coded.payload,
            z_bytes=min(round(coded.z_bits / 8), len(coded.payload)),
            checksum=coded.checksum ^ self._weights_check,
            portable=self.mode == "portable",
        ).to_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image. BitstreamError unless the bytes are a whole elic stream made with these weights."""
        container = self._parse(data)
        rows, columns = -(-container.height // _STRIDE), -(-container.width // _STRIDE)
        latents = self._coder("portable" if container.portable else "default").decompress(container.payload, rows, columns)
        container.verify(data, latents.checksum ^ self._weights_check)
        return self._pixels(latents.y_hat)[: container.height, : container.width]

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        """Bits of header, z, y and text, summing to the stream. BitstreamError."""
        return self._parse(data).rates(data)

    def _pixels(self, y_hat: Tensor) -> Image:
        torch = self._torch
        with torch.inference_mode():
            y = y_hat.to(self._device, self._dtype, memory_format=torch.channels_last)
            x = self._synthesis(y)[0].permute(1, 2, 0).float()
            return np.ascontiguousarray((torch.nan_to_num(x).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())

    def _parse(self, data: bytes) -> Container:
        container = Container.from_bytes(data)
        if container.codec != self.name:
            raise BitstreamError(f"the stream was made by {container.codec}, not by {self.name}")
        return container

    def _coder(self, mode: str) -> HyperpriorCoder:
        from icmbench.codecs.entropy.hyperprior import HyperpriorCoder

        if mode not in self._coders:
            n = self._network
            self._coders[mode] = HyperpriorCoder(n.entropy_bottleneck, n.gaussian_conditional, n.h_s, n.context, mode)
        return self._coders[mode]
