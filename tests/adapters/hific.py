"""HiFiC by the authors' compress.py alone; verify.py compares the adapter with it.

The networks' widths are fixed in the authors' code, so `prepare` only takes fewer residual blocks. The last layer of the encoder
is enlarged, since with initial weights nearly all latents would round to 0.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path


def prepare(folder):
    """A random model, saved with the keys that the authors' `save_model` writes and `load_model` reads."""
    import torch
    from default_config import ModelModes, hific_args
    from src.model import Model

    _keep_alexnet_random()
    torch.manual_seed(0)
    hific_args.n_residual_blocks = 1
    hific_args.normalize_input_image = True
    model = Model(hific_args, logging.getLogger("hific"), model_mode=ModelModes.TRAINING, model_type=hific_args.model_type)
    with torch.no_grad():
        model.Encoder.conv_block_out[-1].weight.mul_(8)
        model.Hyperprior.analysis_net.conv3.weight.mul_(20)
        for name, parameter in model.Hyperprior.hyperlatent_likelihood.named_parameters():
            if name.startswith("H_"):  # Narrower densities, whose tails the authors' search finds in less time.
                parameter.add_(1.0)
    arguments = {key: getattr(hific_args, key) for key in dir(hific_args) if not key.startswith("_")}
    torch.save({"model_state_dict": model.state_dict(), "args": arguments, "epoch": 0, "steps": 0}, Path(folder, "hific_low.pt"))
    return {"point": "low", "options": {"weights": Path(folder, "hific_low.pt")}}


def direct(folder, image):
    """The file that compress.py saves and the reconstruction that it returns, before save_image stretches it."""
    import compress
    import torch
    from PIL import Image

    pictures = Path(folder, "pictures")
    pictures.mkdir(exist_ok=True)
    Image.fromarray(image).save(pictures / "image.png")
    model, arguments = _model(folder)
    loader = compress.prepare_dataloader(arguments, str(pictures), str(folder))
    compress.compress_and_save(model, arguments, loader, str(folder))
    path = Path(folder, "image_compressed.hfc")
    pixels = compress.load_and_decompress(model, str(path), str(Path(folder, "reconstruction.png")))[0]
    return path.read_bytes(), pixels.mul(255).add(0.5).clamp(0, 255).permute(1, 2, 0).to("cpu", torch.uint8).numpy()


@functools.lru_cache(maxsize=1)
def _model(folder):
    import compress

    _keep_alexnet_random()
    return compress.prepare_model(str(Path(folder, "hific_low.pt")), str(folder))


def _keep_alexnet_random():
    """The LPIPS loss, which compression does not use, must not fetch AlexNet from a hub."""
    import torchvision

    alexnet = torchvision.models.alexnet
    torchvision.models.alexnet = lambda pretrained=False, **options: alexnet(**options)
