"""ELIC as a codec: pixels, network, entropy coder, container.

    image --elic_engine: networks and entropy coder--> payload --container--> bytes, and back

Imports nothing heavy; the engine does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, file_sha256, fingerprint
from icmbench.codecs.bitstream import Container
from icmbench.codecs.checks import check_image
from icmbench.codecs.diffusion.backbone.files import PRETRAINED

LAMBDAS = (0.004, 0.008, 0.016, 0.032, 0.15, 0.45)  # A stream stores 1 + the index of its lambda, or 0 for any other point.


class Elic:
    """ELIC (CVPR 2022), the learned codec that the papers compare with.

    Args:
        point: The lambda that the weights were trained with, or any label.
        weights: A weight file in CompressAI's, Chandelier's or this project's layout, in which "{point}" stands for the point; or
            a folder that `icmbench train` wrote; or "tiny", weights for demonstration that come with the package, for the points
            0.001, 0.004 and 0.016. They must be named, because no weights of full size come with the package.
        variant: The network's variant, "official" or "chandelier". None takes the variant of the weights.
        dtype: Number type of the transforms. bfloat16 is faster on some devices; its reconstructions differ slightly.
        mode: "default" streams decode only on the kind of machine that made them. "portable" streams decode on any processor, but
            coding takes longer.
        device: Where the transforms run, such as "cpu" or "cuda".

    Raises:
        CodecError: an option is wrong, or the weights are missing, damaged or of another network.
    """

    name = "elic"
    extra = "learned"
    weights = (
        "small ones for demonstration come with the package (set: {weights: tiny}); Elic2022Official or Elic2022Chandelier state "
        "dicts, trained by yourself or by their authors (set: {weights: PATH})"
    )
    default_points = LAMBDAS
    version = 1  # Raised by hand when bytes or pixels change for the same weights and options.

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
        from icmbench.codecs.elic_engine import ElicEngine

        path = PRETRAINED / "tiny" if weights == "tiny" else Path(str(weights).replace("{point}", str(point)))
        if path.is_dir():
            path /= elic_model.weight_file_name(point)
        self.point = RatePoint.of("lambda", point) if isinstance(point, int | float) else RatePoint(point, 0.0, {"point": point})
        self.mode = mode
        transforms_device = torch.device(device)
        network = elic_model.load_network(path, variant)
        self._weights_check = elic_model.weights_checksum(network)
        self._engine = ElicEngine(network, mode, transforms_device, getattr(torch, dtype))
        self.device = device
        self.deterministic = transforms_device.type == "cpu"
        self.fingerprint = fingerprint(
            codec=self.name,
            version=self.version,
            weights=file_sha256(path),
            variant=network.variant,
            dtype=dtype,
            mode=mode,
            device=transforms_device.type,
            torch=torch.__version__,
        )

    def compress(self, image: Image) -> bytes:
        """A whole stream.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type, or the stream would not decode to its symbols.
        """
        image = np.asarray(image)
        check_image(image, self.name)
        coded = self._engine.encode(image, self.mode)
        return Container(
            codec=self.name,
            model=LAMBDAS.index(self.point.order) + 1 if self.point.order in LAMBDAS else 0,
            width=image.shape[1],
            height=image.shape[0],
            payload=coded.payload,
            z_bytes=min(round(coded.z_bits / 8), len(coded.payload)),
            checksum=coded.checksum ^ self._weights_check,
            portable=self.mode == "portable",
        ).to_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image of a stream, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec and these weights.
        """
        container = self._parse(data)
        mode = "portable" if container.portable else "default"
        latents = self._engine.decode(container.payload, container.height, container.width, mode)
        container.verify(data, latents.checksum ^ self._weights_check)
        return self._engine.pixels(latents.y_hat)[: container.height, : container.width]

    @classmethod
    def stream_options(cls, data: bytes) -> dict[str, Any]:
        """The mode of a stream and, if it is one of `LAMBDAS`, its point; see `icmbench.codecs.base.Codec`.

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec.
        """
        container = cls._parse(data)
        point = {"point": LAMBDAS[container.model - 1]} if 1 <= container.model <= len(LAMBDAS) else {}
        return {**point, "mode": "portable" if container.portable else "default"}

    def rate_breakdown(self, data: bytes) -> dict[str, int]:
        """Bits of the parts header, z, y and text (always 0), which sum to the stream.

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec.
        """
        return self._parse(data).rates(data)

    @classmethod
    def _parse(cls, data: bytes) -> Container:
        container = Container.from_bytes(data)
        if container.codec != cls.name:
            raise BitstreamError(f"the stream was made by {container.codec}, not by {cls.name}")
        return container
