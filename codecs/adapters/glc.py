"""GLC (Jia et al., CVPR 2024, "Generative Latent Coding for Ultra-Low Bitrate Image Compression"), the image codec.

Repository: jzyustc/GLC, read at 126db25f9c09. The calls are those of `test_image.py`.

Environment that was tried (Python 3.12 and torch 2.5.1, which the authors name; the codec's own modules need no more than these):
    uv venv -p 3.12 envs/glc && uv pip install -p envs/glc/bin/python torch==2.5.1 torchvision==0.20.1 numpy==1.26.4

Weights: GLC_image of the repository's release page, one file for all four points. It was not reachable here.
Licence: the repository's licence file is Apache-2.0, the headers of its files say MIT (Microsoft). None is stated for the weights.

The repository has no entropy coder: `test_image.py` adds up the bits of y under its Gaussian model, with 1e-5 added to each
probability, and log2(16384) = 14 bits for each index of z. This adapter therefore returns pixels and estimated bits, as the authors
report them, and no stream. An image's size, a few bytes, is not counted.

Verified with random weights of the authors' full network, on the CPU: bits and pixels of `test_image.py`; also with Python 3.10 and
torch 2.1.2. Not verified: the authors' weights, a GPU.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

_STRIDE = 64  # pixels; test_image.py pads to multiples of it


class Glc:
    """GLC: transform coding in the latent space of a VQ-VAE; its rate is an estimate.

    Args:
        point: Index of the quality, 0 to 3, `--q_indexes` of the authors' script.
        weights: The authors' checkpoint.
        device: Where the network runs, as PyTorch names it.
    """

    name = "glc"
    default_points = (0, 1, 2, 3)

    def __init__(self, point: int, weights: Path, device: str = "cpu") -> None:
        if point not in self.default_points:
            raise ValueError(f"glc: there is no point {point}; choose among {self.default_points}")
        self.point = {"label": f"q={point}", "order": float(point), "parameters": {"q": point}}
        self.fingerprint = {"reconstruction": 1}
        self.device, self._q, self._weights = device, point, Path(weights)

    def reconstruct(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        import torch
        from src.utils.test_utils import from_0_1_to_minus1_1, from_minus1_1_to_0_1

        net = _load(self._weights, self.device)
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255.0)[None].to(self.device)
        padding = net.get_padding_size(*image.shape[:2], _STRIDE)
        with torch.no_grad():
            padded = torch.nn.functional.pad(from_0_1_to_minus1_1(x), padding, mode="replicate")
            result = net.test(padded, self._q)
        x_hat = torch.nn.functional.pad(result["x_hat"].clamp(-1, 1), [-side for side in padding])
        pixels = from_minus1_1_to_0_1(x_hat)[0].cpu().numpy().transpose(1, 2, 0) * 255
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), float(result["bit"])


@functools.lru_cache(maxsize=None)
def _load(path: Path, device: str) -> Any:
    """The authors' network, which all points share, under the settings of their script (one thread among them)."""
    from src.models.image_model import GLC_Image
    from src.utils.test_utils import get_state_dict, init_func

    init_func()
    net = GLC_Image(inplace=True)
    net.load_state_dict(get_state_dict(str(path)), strict=True)
    return net.to(device).eval()
