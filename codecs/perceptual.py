"""Perceptual networks of the losses, each injectable: what a package or a file on this machine holds, named in the recipe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.base import CodecError

DISTANCES = ("lpips-vgg", "lpips-alex", "stlpips-alex", "stlpips-vgg", "random")


def perceptual_distance(name: str, device: str) -> nn.Module:
    """(B, 3, H, W) twice, in [0, 1] -> mean distance.

    name: "lpips-vgg" or "lpips-alex" (package lpips; torchvision's ImageNet weights from its cache), "stlpips-alex" or
    "stlpips-vgg" (package stlpips_pytorch, weights included), or "random": convolutions with random weights, for tests. CodecError.
    """
    if name not in DISTANCES:
        raise CodecError(f"there is no perceptual distance {name!r}: choose from {', '.join(DISTANCES)}")
    kind, _, net = name.partition("-")
    made: nn.Module = _RandomDistance() if kind == "random" else _Lpips(_lpips(net) if kind == "lpips" else _stlpips(net))
    return made.to(device).eval().requires_grad_(False)


class _Lpips(nn.Module):
    """A network of either package on pixels in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.network(2 * first.float() - 1, 2 * second.float() - 1).mean()


class _RandomDistance(nn.Module):
    """Squared differences of features of three random strided convolutions (seed 0): no perceptual meaning."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 8), (8, 16), (16, 16)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        distances = []
        for layer in self.layers:
            first, second = torch.relu(layer(first)), torch.relu(layer(second))
            distances.append((first - second).square().mean())
        return torch.stack(distances).sum()


def _lpips(net: str) -> Any:
    import lpips

    try:
        with warnings.catch_warnings():  # it names torchvision's `weights` argument as it was called before
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            return lpips.LPIPS(net=net, verbose=False)
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise CodecError(f"LPIPS's {net} needs torchvision's ImageNet weights ({error}): put their file in {place}") from error


def _stlpips(net: str) -> Any:
    from stlpips_pytorch import stlpips

    return stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)
