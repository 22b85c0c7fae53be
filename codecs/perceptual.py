"""Perceptual distances between pictures, chosen by name: LPIPS and its shift-tolerant variant.

Training minimises them, and the prompt search of diffusion codecs ranks its candidates by them. The packages that hold the networks
are optional and imported only when one is asked for.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from icmbench.codecs.base import CodecError

DISTANCES = ("lpips-vgg", "lpips-alex", "stlpips-alex", "stlpips-vgg", "random")


def perceptual_distance(name: str, device: str) -> nn.Module:
    """Load a frozen perceptual distance.

    Args:
        name: "lpips-vgg" or "lpips-alex" (package lpips, whose ImageNet weights come from torchvision's cache; Zhang et al. 2018),
            "stlpips-alex" or "stlpips-vgg" (package stlpips_pytorch, weights included; Ghildyal and Liu 2022), or "random":
            convolutions with random weights, for tests.
        device: PyTorch device of the network and of the pictures.

    Returns:
        A module that takes two batches (B, 3, H, W) in [0, 1] and returns their mean distance, a scalar.

    Raises:
        CodecError: no distance has this name, or torchvision neither has the ImageNet weights in its cache nor can download them.
    """
    if name not in DISTANCES:
        raise CodecError(f"there is no perceptual distance {name!r}: choose from {', '.join(DISTANCES)}")
    family, _, net = name.partition("-")
    distance: nn.Module = (
        _RandomDistance() if family == "random" else _PackageDistance(_load_lpips(net) if family == "lpips" else _load_stlpips(net))
    )
    return distance.to(device).eval().requires_grad_(False)


class _PackageDistance(nn.Module):
    """Either package's network, which expects pixels in [-1, 1], on pixels in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.network(2 * first.float() - 1, 2 * second.float() - 1).mean()


class _RandomDistance(nn.Module):
    """Squared differences of features of three random strided convolutions (seed 0), without perceptual meaning."""

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


def _load_lpips(net: str) -> Any:
    import lpips

    try:
        with warnings.catch_warnings():  # lpips calls torchvision with an argument name that torchvision has since deprecated
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            return lpips.LPIPS(net=net, verbose=False)
    except OSError as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise CodecError(f"LPIPS's {net} needs torchvision's ImageNet weights ({error}): put their file in {cache}") from error


def _load_stlpips(net: str) -> Any:
    from stlpips_pytorch import stlpips

    return stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)
