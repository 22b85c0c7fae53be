"""CDC without the adapter: random weights in the authors' format, and their own calls. Runs in the guest's interpreter.

ICMBENCH_CDC=x in the environment tries the x-parameterization in place of epsilon.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np

WHICH = os.environ.get("ICMBENCH_CDC", "epsilon")
STEPS, GAMMA, SEED = 2, 0.8, 3


def prepare(folder: Path) -> dict:
    """Writes random weights of the authors' network, for x with the wrapper of its moving average.

    Returns:
        The adapter's options: `point` and `options`.
    """
    import torch

    torch.manual_seed(0)
    model = _model()
    state = {"model": model.state_dict()} if WHICH == "epsilon" else {"ema": _ema(model).state_dict()}
    torch.save(state, str(Path(folder, "cdc-0.01.pt")))
    options = {"parameterization": WHICH, "gamma": GAMMA, "steps": STEPS, "seed": SEED}
    return {"point": 0.01, "options": {"weights": str(Path(folder, "cdc-0.01.pt")), **options}}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `test_epsilonparam.py` or `test_xparam.py` does with a picture whose sides are multiples of 64.

    Args:
        folder: Where `prepare` wrote the weights.
        image: uint8 RGB, (height, width, 3).

    Returns:
        The bits that the authors report (their bpp times the pixels), and the reconstruction, uint8 RGB.
    """
    import torch
    import torchvision
    from PIL import Image

    torch.set_num_threads(1)
    model, stored = _model(), torch.load(str(Path(folder, "cdc-0.01.pt")), map_location="cpu")
    if WHICH == "epsilon":
        model.load_state_dict(stored["model"])
    else:
        ema = _ema(model)
        ema.load_state_dict(stored["ema"])
        model = ema.ema_model
    model.eval()
    source, target = str(Path(folder, "input.png")), str(Path(folder, "output.png"))
    Image.fromarray(image).save(source)
    x = torchvision.io.read_image(source).unsqueeze(0).float() / 255.0
    sampler = {"sample_mode": "ddim", "bpp_return_mean": False} if WHICH == "epsilon" else {"bpp_return_mean": True}
    torch.manual_seed(SEED)
    x_hat, bpp = model.compress(x * 2.0 - 1.0, sample_steps=STEPS, init=torch.randn_like(x) * GAMMA, **sampler)
    torchvision.utils.save_image((x_hat.clamp(-1, 1) / 2.0 + 0.5).cpu(), target)
    return float(bpp) * image.shape[0] * image.shape[1], np.asarray(Image.open(target))


def _model():
    """The model as the authors' scripts make it, without the LPIPS network, whose weights come from the network."""
    names = ("unet", "compress_modules", "denoising_diffusion")
    modules = {name: importlib.import_module(f"{WHICH}param.modules.{name}") for name in names}
    make = modules["denoising_diffusion"].GaussianDiffusion
    sizes = {"dim": 64, "dim_mults": [1, 2, 3, 4], "hyper_dims_mults": [4, 4, 4], "channels": 3}
    unet = {"dim": 64, "channels": 3, "dim_mults": [1, 2, 3, 4, 5, 6], "context_dim_mults": [1, 2, 3, 4]}
    if WHICH == "epsilon":
        denoiser = modules["unet"].Unet(context_channels=3, **unet)
        context = modules["compress_modules"].BigCompressor(out_channels=3, vbr=False, **sizes)
        schedule = {"num_timesteps": 20000, "clip_noise": "none", "vbr": False, "pred_mode": "noise", "var_schedule": "linear"}
        return make(denoise_fn=denoiser, context_fn=context, loss_type="l1", lagrangian=0.9, aux_loss_weight=0, **schedule)
    denoiser = modules["unet"].Unet(context_channels=64, embd_type="01", **unet)
    context = modules["compress_modules"].ResnetCompressor(out_channels=64, reverse_dim_mults=[4, 3, 2, 1], **sizes)
    schedule = {"num_timesteps": 8193, "pred_mode": "x", "var_schedule": "cosine", "use_loss_weight": True, "loss_weight_min": 5}
    return make(denoise_fn=denoiser, context_fn=context, loss_type="l2", lagrangian=0.0032, aux_loss_weight=0, **schedule)


def _ema(model):
    from ema_pytorch import EMA

    return EMA(model, beta=0.999, update_every=10, power=0.75, update_after_step=100)
