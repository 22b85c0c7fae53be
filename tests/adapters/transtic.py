"""TransTIC with random weights: what verify.py compares the adapter with. See codecs/adapters/transtic.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def _network():
    """The authors' network as examples/classification.py makes it from config/classification.yaml."""
    import compressai
    import yaml
    from compressai.zoo import image_models

    config = (Path(compressai.__file__).parents[1] / "config" / "classification.yaml").read_text(encoding="utf-8")
    options = argparse.Namespace(**yaml.safe_load(config))
    return image_models[options.model](quality=2, prompt_config=options)


def prepare(folder: Path) -> dict:
    """A checkpoint of the authors' network in the form of their file.

    Some layers are scaled, because an untrained network rounds all latents to zeros, and its pixels are black or white.
    """
    import torch

    torch.manual_seed(2)
    net = _network()
    with torch.no_grad():
        for layer, factor in ((net.g_a6, 6), (net.h_a2, 6), (net.h_s3, 6), (net.g_s7, 0.2)):
            layer.weight.mul_(factor)
        net.g_s7.bias.fill_(0.5)
    torch.save({"state_dict": {"module." + key: value for key, value in net.state_dict().items()}}, Path(folder, "cls_2.pth.tar"))
    return {"point": 2, "options": {"weights": str(Path(folder, "cls_{point}.pth.tar"))}}


def direct(folder: Path, image: np.ndarray) -> tuple:
    """The strings of the authors' `compress`, y before z, and the pixels that `test_epoch` of their scripts shows to the task."""
    import torch
    from torchvision.transforms.functional import to_tensor
    from utils.alignment import Alignment

    torch.set_num_threads(1)
    net = _network().eval()
    state = torch.load(Path(folder, "cls_2.pth.tar"))["state_dict"]
    net.load_state_dict({key[7:]: value for key, value in state.items()})
    net.update()
    align = Alignment(divisor=256, mode="resize")
    aligned = align.align(to_tensor(image.copy())[None])
    with torch.no_grad():
        strings = net.compress(aligned)["strings"]
        x_hat = align.resume(net(aligned)["x_hat"]).clamp_(0, 1)
    return b"".join(string[0] for string in strings), np.round(x_hat[0].permute(1, 2, 0).numpy() * np.float32(255)).astype(np.uint8)
