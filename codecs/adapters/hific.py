"""HiFiC (Mentzer et al., NeurIPS 2020) by its PyTorch port, which is the one that papers compare with.

Repository: Justin-Tan/high-fidelity-generative-compression, read at commit 7d4e9e78 of December 2021.

Environment, as tried (Python 3.8.18, the authors' pins):

    uv venv -p 3.8 envs/hific && uv pip install --python envs/hific/bin/python torch==1.6.0 torchvision==0.7.0 numpy==1.19.1 \
        scipy==1.5.2 autograd==1.3 Pillow==8.3.2 tqdm==4.48.2 scikit-image==0.17.2 matplotlib==3.3.0 pandas==1.1.5 \
        tensorboard==2.3.0 "setuptools<60"

Weights: hific_low.pt, hific_med.pt and hific_hi.pt, about 2 GB in all, from the links in the repository's README (record 4026003
of Zenodo); `weights` is the checkpoint of a point, "weights/hific_{point}.pt". Licence: Apache-2.0, "all content in this
repository"; nothing else is said of the weights.

The stream is the file that the authors' compress.py saves, byte for byte. Their vectorised coder keeps a state of 64 bits for
each of its 540 channels, so that no stream has less than 4362 bytes; the rates in the README and those that compress.py prints
are the network's estimates instead. Pixels are the clamped reconstruction that its metrics see, rounded as torchvision's
save_image rounds. The pictures that compress.py writes differ from it: save_image is called there with normalize=True, which
stretches each picture so that its darkest value is 0 and its brightest 255.

The network runs on a GPU wherever PyTorch sees one, as the authors chose; hide it with CUDA_VISIBLE_DEVICES. The LPIPS network,
which only training needs and which would fetch AlexNet from a hub, is left out. Reflection padding in the hyperprior needs images
of more than 64 pixels; a shorter side is first extended to 128 by its last row or column.

Verified by tests/adapters/verify.py: streams and pixels equal to compress.py with random weights of the authors' classes, encoder
and decoder in two processes, and the same through `icmbench run`. Not verified: the released weights, a GPU, and the rates of the
README.
"""

from __future__ import annotations

import functools
import logging
import struct
import tempfile
from pathlib import Path

import numpy as np

TARGETS = {"low": 0.14, "med": 0.3, "hi": 0.45}  # bits per pixel
FENCE = b"\x46\xe2\x84\x92"  # What the authors write between the parts of a file.


class BitstreamError(ValueError):
    """The bytes are not one whole stream of this codec."""


class Hific:
    """HiFiC by Justin Tan's and Grace Han's PyTorch code."""

    name = "hific"
    default_points = tuple(TARGETS)

    def __init__(self, point, weights: Path):
        import torch

        if point not in TARGETS:
            raise ValueError(f"no point {point!r}: choose from {', '.join(TARGETS)}")
        self.point = {"label": f"regime={point}", "order": TARGETS[point], "parameters": {"regime": point}}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.fingerprint = {"device": self.device}
        self._checkpoint = weights

    def compress(self, image):
        import torch
        from src.compression.compression_utils import save_compressed_format

        height, width = image.shape[:2]
        extended = np.pad(image, [(0, 128 - side if side <= 64 else 0) for side in (height, width)] + [(0, 0)], "edge")
        pixels = torch.from_numpy(extended).permute(2, 0, 1)[None].float().div(255).to(self.device)
        arguments, model = _load(self._checkpoint)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            output = model.compress(pixels * 2 - 1 if arguments.normalize_input_image else pixels, silent=True)
            save_compressed_format(output._replace(spatial_shape=(height, width)), str(Path(folder, "stream.hfc")))
            return Path(folder, "stream.hfc").read_bytes()

    def decompress(self, data):
        import torch
        from src.compression.compression_utils import load_compressed_format

        _check(data)
        _, model = _load(self._checkpoint)
        torch.manual_seed(42)  # The authors' seed, for models that add noise to the latents (`sample_noise`).
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "stream.hfc")
            path.write_bytes(data)
            try:
                pixels = model.decompress(load_compressed_format(str(path)))[0]
            except (AssertionError, IndexError, ValueError) as error:
                raise BitstreamError(f"not a stream of HiFiC: {error}") from error
        return pixels.mul(255).add(0.5).clamp(0, 255).permute(1, 2, 0).to("cpu", torch.uint8).numpy()


def _check(data):
    """Refuse bytes whose sizes do not fit each other, before anything is allocated for them."""
    try:
        hyper_height, hyper_width, height, width = struct.unpack_from("<4H", data)
        hyper_bytes = struct.unpack_from("<I", data, 26)[0]
        latent_bytes = struct.unpack_from("<I", data, 34 + hyper_bytes)[0]
    except struct.error as error:
        raise BitstreamError(f"not a stream of HiFiC: {error}") from error
    fences = data[22:26], data[30 + hyper_bytes : 34 + hyper_bytes], data[38 + hyper_bytes + latent_bytes :]
    expected = [-(-(side if side > 64 else 128) // 64) for side in (height, width)]
    if fences != (FENCE, FENCE, FENCE) or [hyper_height, hyper_width] != expected or data[20:22] != b"\x01\x00":
        raise BitstreamError("not a stream of HiFiC: its parts do not fit together")


@functools.lru_cache(maxsize=3)
def _load(checkpoint):
    """The authors' arguments and model with its tables, as their `prepare_model` makes it."""
    import torch
    from default_config import ModelModes
    from src.helpers import utils
    from src.loss.perceptual_similarity import perceptual_loss

    logger = logging.getLogger("hific")
    loss, perceptual_loss.PerceptualLoss = perceptual_loss.PerceptualLoss, lambda **options: None
    try:
        arguments, model, _ = utils.load_model(
            checkpoint, logger, utils.get_device(), model_mode=ModelModes.EVALUATION, prediction=True, strict=False, silent=True
        )
    finally:
        perceptual_loss.PerceptualLoss = loss
    saved = torch.load(checkpoint, map_location="cpu")["model_state_dict"]
    missing = [key for key in model.state_dict() if key not in saved and "entropy_model" not in key]
    if missing:
        raise ValueError(f"{checkpoint}: no weights for {missing[0]} and {len(missing) - 1} more")
    model.Hyperprior.hyperprior_entropy_model.build_tables()
    return arguments, model
