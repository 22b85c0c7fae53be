"""CDC (Yang and Mandt, NeurIPS 2023, "Lossy Image Compression with Conditional Diffusion Models"), both parameterizations.

Repository: buggyyang/CDC_compression, read at 00b10de91f73. The calls are those of `epsilonparam/test_epsilonparam.py` and
`xparam/test_xparam.py`.

Environment that was tried (Python 3.9, as the authors' environment.yml says, which pins torch 2.0.0):
    uv venv -p 3.9 envs/cdc && uv pip install -p envs/cdc/bin/python torch==2.1.2 torchvision==0.16.2 numpy==1.24.3 \\
        einops==0.6.0 lpips==0.1.4 tqdm==4.65.0 ema-pytorch==0.2.3 packaging==23.0

Weights: rhyang/CDC_params on Hugging Face, named in the authors' README. They were not reachable here.
Licence: MIT for the code; none is stated for the weights.

The repository has no entropy coder: `compress` returns the reconstruction and the bits of the likelihoods. This adapter therefore
returns pixels and estimated bits, as the authors report them, and no stream. An image's size, a few bytes, is not counted.
The authors' scripts take images whose sides are multiples of 64; others are padded here by repeating the last row and column, the
bits are those of the padded image, and the padding is cut off again. Their scripts draw the noise without a seed; here it has one.

Verified with random weights of the authors' full networks, on the CPU, with 2 steps of either parameterization: bits and pixels of
the authors' scripts. Not verified: the authors' weights, a GPU, the full number of steps.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np

_STRIDE = 64  # pixels: 16 between the image and its latents, 4 between them and the hyperlatents
# What the authors' scripts give to their classes, and their default number of steps. What only training reads is left out.
_UNETS: dict[str, dict[str, Any]] = {"epsilon": {"context_channels": 3}, "x": {"context_channels": 64, "embd_type": "01"}}
_COMPRESSORS: dict[str, dict[str, Any]] = {
    "epsilon": {"out_channels": 3, "vbr": False},
    "x": {"out_channels": 64, "reverse_dim_mults": (4, 3, 2, 1)},
}
_DIFFUSIONS: dict[str, dict[str, Any]] = {
    "epsilon": {"num_timesteps": 20000, "clip_noise": "none", "vbr": False, "pred_mode": "noise", "var_schedule": "linear"},
    "x": {"num_timesteps": 8193, "pred_mode": "x", "var_schedule": "cosine"},
}
_STEPS = {"epsilon": 200, "x": 65}


class Cdc:
    """CDC: a learned codec whose decoder is a diffusion model; its rate is an estimate.

    Args:
        point: Lambda of the weights.
        weights: The authors' checkpoint; "{point}" in its name stands for the point.
        parameterization: What the denoiser predicts, "x" or "epsilon"; it must be that of the weights.
        gamma: Standard deviation of the noise that decoding starts from; 0 gives the smoothest picture.
        steps: Number of denoising steps. None takes the default of the authors' script, 65 for x and 200 for epsilon.
        seed: Seed of the noise.
        device: Where the networks run, as PyTorch names it.
    """

    name = "cdc"

    def __init__(
        self,
        point: float,
        weights: Path,
        parameterization: str = "epsilon",
        gamma: float = 0.8,
        steps: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if parameterization not in _STEPS:
            raise ValueError(f"cdc: parameterization must be x or epsilon, not {parameterization}")
        self.point = {"label": f"lambda={point:g}", "order": -float(point), "parameters": {"lambda": point}}
        self.device, self._weights, self._which = device, Path(weights), parameterization
        self._gamma, self._seed, self._steps = gamma, seed, steps or _STEPS[parameterization]
        self.fingerprint = {"reconstruction": 1, "steps": self._steps}

    def reconstruct(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        import torch

        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % _STRIDE), (0, -width % _STRIDE), (0, 0)), "edge")
        x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255.0
        torch.manual_seed(self._seed)
        noise = torch.randn_like(x) * self._gamma  # in the layout of torchvision's read_image, as the authors draw it
        sampler = {"sample_mode": "ddim"} if self._which == "epsilon" else {}
        x_hat, bpp = _load(self._weights, self._which, self.device).compress(
            x.to(self.device) * 2.0 - 1.0, sample_steps=self._steps, init=noise.to(self.device), **sampler
        )
        pixels = (x_hat.clamp(-1, 1) / 2.0 + 0.5)[0, :, :height, :width].mul(255).add(0.5).clamp(0, 255).byte()
        return pixels.permute(1, 2, 0).cpu().numpy(), bpp.item() * x.shape[2] * x.shape[3]


@functools.lru_cache(maxsize=2)
def _load(path: Path, which: str, device: str) -> Any:
    """The authors' model without the LPIPS network of its loss, which checkpoints hold too and decoding does not use."""
    import torch

    def module(name: str) -> Any:
        return importlib.import_module(f"{which}param.modules.{name}")

    torch.set_num_threads(1)
    compressors = module("compress_modules")
    compressor = compressors.BigCompressor if which == "epsilon" else compressors.ResnetCompressor
    context = compressor(dim=64, dim_mults=(1, 2, 3, 4), hyper_dims_mults=(4, 4, 4), channels=3, **_COMPRESSORS[which])
    unet = module("unet").Unet(dim=64, channels=3, dim_mults=(1, 2, 3, 4, 5, 6), context_dim_mults=(1, 2, 3, 4), **_UNETS[which])
    diffusion = module("denoising_diffusion").GaussianDiffusion(unet, context, **_DIFFUSIONS[which])
    stored, prefix = torch.load(str(path), map_location="cpu"), "ema_model." if which == "x" else ""
    state = stored["ema" if which == "x" else "model"]
    state = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix) and "loss_fn_vgg" not in key}
    diffusion.load_state_dict(state)
    return diffusion.to(device).eval()
