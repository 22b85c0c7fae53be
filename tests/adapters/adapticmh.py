"""AdaptICMH with random weights: what verify.py compares the adapter with. See codecs/adapters/adapticmh.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def prepare(folder: Path) -> dict:
    """A checkpoint of the authors' network in the form of their file.

    Some layers are scaled, because an untrained network rounds all latents to zeros, and its pixels are black or white.
    """
    import torch
    from models.tic_sfma import TIC_SFMA

    torch.manual_seed(3)
    net = TIC_SFMA(N=128, M=192)
    with torch.no_grad():
        for layer, factor in ((net.g_a6, 6), (net.h_a2, 6), (net.h_s3, 6), (net.g_s7, 0.2)):
            layer.weight.mul_(factor)
        net.g_s7.bias.fill_(0.5)
    torch.save({"state_dict": net.state_dict()}, Path(folder, "ckpt_cls_level3.tar"))
    return {"point": 3, "options": {"weights": str(Path(folder, "ckpt_cls_level{point}.tar"))}}


class _Repaired(tuple):
    """What `g_s` returns, with the `clamp_` that the last line of the authors' `decompress` asks of it."""

    def clamp_(self, low: float, high: float) -> tuple:
        return self[0].clamp_(low, high), self[1]


def direct(folder: Path, image: np.ndarray) -> tuple:
    """The strings of the authors' `compress`, y before z, and the pixels of their `decompress`.

    Their `forward` rounds latents through a straight-through estimator, which adds errors of floating point: its pixels are the
    same to one step of 256.
    """
    import torch
    from models.tic_sfma import TIC_SFMA
    from torchvision.transforms.functional import to_tensor
    from utils.alignment import Alignment

    torch.set_num_threads(1)
    net = TIC_SFMA(N=128, M=192).eval()
    net.load_state_dict(torch.load(Path(folder, "ckpt_cls_level3.tar"))["state_dict"])
    net.update()
    align = Alignment(divisor=256, mode="pad", padding_mode="constant")
    synthesis = net.g_s
    with torch.no_grad():
        aligned = align.align(to_tensor(image.copy())[None])
        encoded = net.compress(aligned)
        test = align.resume(net(aligned)["x_hat"]).clamp_(0, 1)
        net.g_s = lambda y_hat: _Repaired(synthesis(y_hat))
        x_hat = align.resume(net.decompress(encoded["strings"], encoded["shape"])["x_hat"])
    print("largest difference of forward and decompress, in steps of 256:", float((test - x_hat).abs().max()) * 255)
    pixels = np.round(x_hat[0].permute(1, 2, 0).numpy() * np.float32(255)).astype(np.uint8)
    return b"".join(string[0] for string in encoded["strings"]), pixels
