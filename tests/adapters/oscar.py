"""OSCAR without the adapter: random weights in the authors' format, and their own calls. Runs in the guest's interpreter."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

POINT, LEVEL, INDEX_BITS, SEED = 0.0430, 3, 11, 5  # 2048 codes, one for 16x16 pixels


def prepare(folder: Path) -> dict:
    """Writes a small Stable Diffusion, and random weights of the authors' hyper-encoders at their full size.

    Returns:
        The adapter's options: `point` and `options`.
    """
    import torch
    from diffusers import DDPMScheduler
    from diffusion.models.autoencoder_kl import AutoencoderKL
    from diffusion.models.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    sd = folder / "stable-diffusion-2-1"
    levels = {"layers_per_block": 1, "block_out_channels": (64, 64), "cross_attention_dim": 1024, "attention_head_dim": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    UNet2DConditionModel(use_linear_projection=True, **levels, **blocks).save_pretrained(sd / "unet")
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    channels = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 2, "latent_channels": 4}
    AutoencoderKL(down_block_types=down, up_block_types=up, **channels).save_pretrained(sd / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(sd / "scheduler")
    with _cpu():
        model = _network(folder)
    with torch.no_grad():
        for key, value in model.unet.named_parameters():
            if "lora_B" in key:
                value.normal_(std=0.02)
    model.save_model(str(folder / "oscar.pkl"))
    options = {"weights": str(folder / "oscar.pkl"), "stable_diffusion": str(sd), "seed": SEED}
    return {"point": POINT, "options": options}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """What `main_test.py` does with a picture whose sides are multiples of 128, except that it runs on the CPU.

    Args:
        folder: Where `prepare` wrote the weights.
        image: uint8 RGB, (height, width, 3).

    Returns:
        The indices of the codebook that the authors' model chose, each in its number of bits, which are as many as they report;
        and the reconstruction, uint8 RGB.
    """
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    chosen = []
    with _cpu(), torch.no_grad():
        model = _network(folder).to("cuda")
        model.set_eval()
        model.load_ckpt(torch.load(str(folder / "oscar.pkl")))
        model.hyper_encoders[LEVEL].quantizer.register_forward_hook(lambda module, given, result: chosen.append(result[1]))
        x = transforms.ToTensor()(image).unsqueeze(0) * 2 - 1
        torch.manual_seed(SEED)
        x_hat = model(x, LEVEL)[0]
    bits = "".join(f"{index:0{INDEX_BITS}b}" for index in chosen[0].flatten().tolist())
    assert abs(len(bits) / image.shape[0] / image.shape[1] - model.bpps[LEVEL]) < 1e-4
    payload = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    return payload, np.asarray(transforms.ToPILImage()(x_hat[0] * 0.5 + 0.5))


def _network(folder: Path):
    from diffusion.oscar import OSCAR

    sd = str(folder / "stable-diffusion-2-1")
    return OSCAR(argparse.Namespace(pretrained_model_name_or_path=sd, lora_rank=16, hyper_dim=320))


def _cpu():
    """Runs on the CPU what the authors' code puts on "cuda", which is written into it."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Cpu(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.Tensor.cuda:
                return args[0]
            args = ["cpu" if isinstance(value, (str, torch.device)) and str(value) == "cuda" else value for value in args]
            kwargs = dict(kwargs or {})
            if str(kwargs.get("device")) == "cuda":
                kwargs["device"] = "cpu"
            return function(*args, **kwargs)

    return Cpu()
