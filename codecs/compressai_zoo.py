"""The image codecs of CompressAI's model zoo, with real streams.

    image --pad to 64 as CompressAI's evaluation--> compress() --> strings --container--> bytes --> decompress() --crop--> image

Networks in floating point compute the scales that decide how each symbol is read. Both directions therefore run in
`entropy.exact`: on the CPU, on one thread and with fixed kernels, whatever the caller set. Streams decode only on the kind of
machine that made them.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from icmbench.codecs.base import BitstreamError, CodecError, Image, RatePoint, fingerprint
from icmbench.codecs.bitstream import Container
from icmbench.codecs.checks import check_image, integer_parameter, refusal_reason

if TYPE_CHECKING:
    from torch import Tensor

# Number of pretrained qualities of each model, from 1.
QUALITIES = {
    "bmshj2018-factorized": 8,
    "bmshj2018-hyperprior": 8,
    "mbt2018-mean": 8,
    "mbt2018": 8,
    "cheng2020-anchor": 6,
    "cheng2020-attn": 6,
    "bmshj2018-hyperprior-vbr": 8,
    "mbt2018-mean-vbr": 8,
    "mbt2018-vbr": 8,
}
_STRIDE = 64  # Images are padded to multiples of it, pixels.


class CompressAiZoo:
    """Pretrained codecs of CompressAI: Balle 2018, Minnen 2018, Cheng 2020, and their variable-rate kin.

    Args:
        point: `quality`, from 1 to 8 (cheng2020: 6). For a variable-rate model, its level.
        model: The model's name in the zoo. mbt2018 and cheng2020 decode position by position, which takes tens of seconds per
            image.
        metric: What the pretrained weights were trained for.
        weights: A checkpoint of that model to use instead of the pretrained weights, as CompressAI's training script saves it.
            "{point}" in the path stands for the quality.

    Raises:
        CodecError: an option is wrong, or the weights are missing, damaged or of another model.
    """

    name = "compressai"
    extra = "compressai"
    weights = (
        "CompressAI's pretrained weights (BSD-3-Clause-Clear), downloaded at first use, or a checkpoint (set: {weights: PATH})"
    )
    default_points = (1, 2, 3, 4, 5, 6)
    version = 1  # Raised by hand when bytes or pixels change for the same weights and options.

    def __init__(
        self,
        point: int | Mapping[str, int],
        *,
        model: str = "bmshj2018-hyperprior",
        metric: Literal["mse", "ms-ssim"] = "mse",
        weights: str | Path | None = None,
    ) -> None:
        if model not in QUALITIES:
            raise CodecError(f"compressai: model is one of {', '.join(QUALITIES)}, not {model!r}")
        if metric not in ("mse", "ms-ssim") or (metric == "ms-ssim" and model.endswith("-vbr") and weights is None):
            raise CodecError(
                f"compressai: there are no weights of {model} for {metric!r}; metric is mse, or ms-ssim at a fixed rate"
            )
        quality = integer_parameter(point, self.name, "quality", 1, QUALITIES[model])
        self.point = RatePoint.of("quality", quality)
        if weights is None:
            self._network = _build_network(model, _download_weights(model, metric, quality), "the downloaded file")
        else:
            path = Path(str(weights).replace("{point}", str(quality)))
            self._network = _build_network(model, _load_state(path), str(path))
        self._level = {"s": quality - 1} if model.endswith("-vbr") else {}
        digest = _weights_sha256(self._network)
        self._check = int(digest[:8], 16)
        self.fingerprint = fingerprint(
            codec=self.name, version=self.version, model=model, quality=quality, weights=digest, **_versions()
        )

    def compress(self, image: Image) -> bytes:
        """A self-contained stream.

        Args:
            image: uint8 RGB, (height, width, 3).

        Raises:
            CodecError: the image is of another type.
        """
        check_image(image, self.name)
        from torch.nn import functional as F

        from icmbench.codecs.entropy import exact

        height, width = image.shape[:2]
        pad, _ = _padding(width, height)
        coded: dict[str, Any] = exact.run_exactly(lambda: self._network.compress(F.pad(_tensor(image), pad), **self._level))
        y, *z = (strings[0] for strings in coded["strings"])
        return Container(
            codec=self.name,
            model=int(self.point.order),
            width=width,
            height=height,
            payload=b"".join(z) + y,
            z_bytes=sum(map(len, z)),
            checksum=self._check,
        ).to_bytes()

    def decompress(self, data: bytes) -> Image:
        """The image of a stream, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec and these weights.
        """
        container = self._parse(data)
        from torch.nn import functional as F

        from icmbench.codecs.entropy import exact

        container.verify(data, self._check)
        pad, crop = _padding(container.width, container.height)
        factor = self._network.downsampling_factor
        shape = ((container.height + pad[2] + pad[3]) // factor, (container.width + pad[0] + pad[1]) // factor)
        z, y = container.payload[: container.z_bytes], container.payload[container.z_bytes :]
        strings = [[y], [z]] if z else [[y]]
        try:
            decoded: dict[str, Tensor] = exact.run_exactly(lambda: self._network.decompress(strings, shape, **self._level))
        except Exception as error:  # The coder is C++ code behind asserts. Whatever it raises, the stream is at fault.
            raise BitstreamError(f"compressai: a stream of {len(data)} bytes cannot be decoded: {error}") from error
        x = F.pad(decoded["x_hat"], crop)[0].clamp(0, 1).mul(255).round().byte()
        return np.ascontiguousarray(x.permute(1, 2, 0).numpy())

    @classmethod
    def stream_options(cls, data: bytes) -> dict[str, Any]:
        """The quality of a stream, which does not state its model; see `icmbench.codecs.base.Codec`.

        Raises:
            BitstreamError: the bytes are not one whole stream of this codec.
        """
        return {"point": cls._parse(data).model}

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


def _padding(width: int, height: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Arguments for F.pad: those that pad an image to multiples of the stride, and those that crop it again."""
    from compressai.ops import compute_padding

    return compute_padding(height, width, min_div=_STRIDE)


def _tensor(image: Image) -> Tensor:
    """(1, 3, height, width) float32 in [0, 1]."""
    import torch

    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255


def _build_network(model: str, state: Mapping[str, Any], source: str) -> Any:
    """The network of a state dict. It makes the frequency tables that the state dict lacks. `source` names it in messages."""
    from compressai.zoo import image, image_vbr, load_state_dict

    classes = {**image.model_architectures, **image_vbr.model_architectures}
    variable_z = {"vr_entbttlnck": True} if any(key.startswith("gayn2zqstep.") for key in state) else {}
    try:
        network = classes[model].from_state_dict(load_state_dict(dict(state)), **variable_z)
    except (KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise CodecError(f"compressai: {source} is no state dict of {model}: {error}") from error
    network.update()
    return network.eval().requires_grad_(False)


def _load_state(path: Path) -> Mapping[str, Any]:
    import torch

    if not path.is_file():
        raise CodecError(f"compressai: no such checkpoint: {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types on files that are no checkpoints.
        raise CodecError(f"compressai: {path} is no checkpoint of tensors alone: {refusal_reason(error)}") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping):
        raise CodecError(f"compressai: {path} holds no state dict; save the model's state_dict()")
    return state


def _download_weights(model: str, metric: str, quality: int) -> Mapping[str, Any]:
    """The zoo's own weights from torch's cache or from CompressAI's address, checked against the hash in their file name."""
    from compressai.zoo import image, image_vbr
    from torch.hub import load_state_dict_from_url

    address = image_vbr.model_urls[model][metric] if model.endswith("-vbr") else image.model_urls[model][metric][quality]
    try:
        return load_state_dict_from_url(
            address, map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True
        )
    except (OSError, HTTPException, RuntimeError) as error:
        raise CodecError(
            f"compressai: the weights of {model} ({metric}, quality {quality}) are not in torch's cache and cannot be downloaded "
            f"({error}): try again with a network, or give a checkpoint as weights"
        ) from error


def _weights_sha256(network: Any) -> str:
    """SHA-256 of the weights and tables, which does not depend on the file that they came from."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    import compressai
    import torch

    return {"compressai": compressai.__version__, "torch": torch.__version__}
