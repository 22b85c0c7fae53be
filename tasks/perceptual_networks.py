"""The networks of LPIPS, ST-LPIPS and DISTS, each split into features of one image and a distance of two images' features."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights

from icmbench.tasks.models.errors import ModelError

Features = Sequence[torch.Tensor]  # One tensor (1, channels, height, width) per layer.


class FeatureDistance(Protocol):
    """A perceptual distance that computes the features of each image once."""

    def features(self, pixels: torch.Tensor) -> Features:
        """Features of one image, float32 (1, 3, height, width) in 0..1."""

    def distance(self, first: Features, second: Features) -> float:
        """Distance of two images of one size, from their features."""


class LpipsNetwork:
    """An LPIPS module of the package lpips or stlpips_pytorch, split at its features.

    Args:
        model: the package's module.
        normalise: the package's function that scales each position's channels to unit length.
        device: where it runs.
    """

    def __init__(self, model: Any, normalise: Callable[[torch.Tensor], torch.Tensor], device: str) -> None:
        self.model, self._normalise = model.requires_grad_(False).eval().to(device), normalise

    def features(self, pixels: torch.Tensor) -> Features:
        """Each layer's output with channels of unit length."""
        return [self._normalise(feature) for feature in self.model.net(self.model.scaling_layer(2 * pixels - 1))]

    def distance(self, first: Features, second: Features) -> float:
        """Linear layers on squared differences, averaged over positions, summed over layers."""
        with torch.inference_mode():
            layers = zip(self.model.lins, first, second, strict=True)
            return float(sum(linear((a - b) ** 2).mean(dim=(2, 3)) for linear, a, b in layers))


def backbone(architecture: str, path: Path | None, device: str) -> nn.Module:
    """The convolutional part of a torchvision network.

    Args:
        architecture: "alexnet" or "vgg16".
        path: a file with torchvision's state dict; None downloads the ImageNet weights.
        device: where it runs.

    Raises:
        ModelError: the weights cannot be downloaded, or the file holds none of this network.
    """
    entry = get_model_weights(architecture)["IMAGENET1K_V1"]
    with torch.device("meta"):
        network = get_model(architecture).get_submodule("features")
    try:
        if path is None:
            loaded = torch.hub.load_state_dict_from_url(
                entry.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        convolutional = {name.removeprefix("features."): x for name, x in loaded.items() if name.startswith("features.")}
        network.load_state_dict(convolutional, assign=True)
    except OSError as error:
        cached_file = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/")[-1]
        raise ModelError(
            f"cannot load torchvision's {architecture} ({error}): put the file at {cached_file}, or give `path`"
        ) from error
    except (RuntimeError, AttributeError, EOFError, UnpicklingError) as error:
        raise ModelError(f"{path}: no weights of torchvision's {architecture} ({str(error).splitlines()[0]})") from error
    return network.requires_grad_(False).eval().to(device)


def lpips_network(net: str, trunk: nn.Module, device: str) -> LpipsNetwork:
    """LPIPS 0.1 of the package lpips.

    Args:
        net: "alex" or "vgg".
        trunk: torchvision's alexnet or vgg16, as `backbone` returns it.
        device: where it runs.
    """
    import lpips

    with warnings.catch_warnings():  # The package passes torchvision an argument that has been renamed since.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    loaded = trunk.state_dict()
    # "slice2.3.weight" of the package is "3.weight" of torchvision's features.
    model.net.load_state_dict({name: loaded[name.split(".", 1)[1]] for name in model.net.state_dict()})
    return LpipsNetwork(model, lpips.normalize_tensor, device)


def stlpips_network(net: str, device: str) -> LpipsNetwork:
    """ST-LPIPS of the package stlpips_pytorch, with the package's weights; `net` is "alex" or "vgg"."""
    from stlpips_pytorch import stlpips, utils

    model = stlpips.LPIPS(net=net, variant="shift_tolerant", verbose=False)
    return LpipsNetwork(model, utils.normalize_tensor, device)


class DistsNetwork:
    """DISTS (Ding et al. 2020, eqs. 4 to 7): structure and texture similarity of VGG-16 features with L2 pooling.

    The similarities are computed in float64.

    Args:
        trunk: torchvision's vgg16, as `backbone` returns it.
        weights: the authors' file of alpha and beta.
        device: where it runs.
    """

    def __init__(self, trunk: nn.Module, weights: Path, device: str) -> None:
        self.trunk = trunk
        loaded = torch.load(weights, map_location=device, weights_only=True)
        self.alpha, self.beta = loaded["alpha"].double().flatten(), loaded["beta"].double().flatten()
        window = torch.tensor([0.5, 1.0, 0.5], device=device)
        self.window = (window[:, None] * window)[None, None] / 4
        self.mean, self.std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )

    def features(self, pixels: torch.Tensor) -> Features:
        """The image itself and the last features before each of the five poolings."""
        features, x = [pixels], (pixels - self.mean) / self.std
        for module in self.trunk.children():
            if not isinstance(module, nn.MaxPool2d):
                x = module(x)
                continue
            features.append(x)
            if len(features) == 6:
                break
            x = self._pool(x)
        return features

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        """L2 pooling with stride 2."""
        window = self.window.expand(x.shape[1], 1, 3, 3)
        return (nn.functional.conv2d(x**2, window, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()

    def distance(self, first: Features, second: Features) -> float:
        """1 - the weighted similarity of texture (channel means) and structure (channel covariances)."""
        texture, structure = [], []
        for a, b in zip(first, second, strict=True):
            x, y = a[0].flatten(1).double(), b[0].flatten(1).double()
            mean_x, mean_y = x.mean(dim=1), y.mean(dim=1)
            covariance = ((x - mean_x[:, None]) * (y - mean_y[:, None])).mean(dim=1)
            texture.append((2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6))
            structure.append((2 * covariance + 1e-6) / (x.var(dim=1, correction=0) + y.var(dim=1, correction=0) + 1e-6))
        similarity = (self.alpha * torch.cat(texture)).sum() + (self.beta * torch.cat(structure)).sum()
        return 1 - float(similarity / (self.alpha.sum() + self.beta.sum()))
