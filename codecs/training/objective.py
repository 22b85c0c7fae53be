"""What is trained, and on which loss: the contract between a recipe and the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.models import EntropyBottleneck

QUANTILES_LR = 1e-3  # Learning rate of the quantiles of factorised priors, whatever the stage's own rate is.


class Objective(nn.Module):
    """Base class of the objectives; called with a batch, it returns {term: loss}, scalars in float32.

    Registered modules are trained, saved in checkpoints and averaged. Networks that only help to compute a loss are held by
    `add_frozen` instead.

    A subclass's constructor takes the rate point, then its own options by keyword, which are the recipe's `set`, and `device`.

    Args:
        point: the rate point to train; None for objectives without rate points.
        device: PyTorch device on which the loop runs.

    Attributes:
        codec: name of the codec that loads what `export` writes; None if there is none.
        default_points: rate points of a recipe that names none.
        extra: the optional dependencies to install, as in `pip install icmbench[extra]`.
        prefix: what precedes a tensor's name in this module's state dict, but not in the codec's weight file.
        pad: the side of a crop must be a multiple of this many pixels.
        needs: what the data must provide besides pixels: "text", "mask" or "label".
        weights: the factor of each term in the sum that is minimised; a term without a weight is only logged.
        frozen_networks: the networks held by `add_frozen`, by name.
    """

    codec: ClassVar[str | None] = None
    default_points: ClassVar[tuple[float | None, ...]] = (None,)
    extra: ClassVar[str] = "train"
    prefix: ClassVar[str] = ""
    pad: int = 8

    def __init__(self, point: float | None, device: str) -> None:
        super().__init__()
        self.point, self.device = point, torch.device(device)
        self.needs: set[str] = set()
        self.weights: dict[str, float] = {}
        self.frozen_networks: dict[str, Any] = {}  # In a plain dictionary, so that PyTorch neither trains nor saves them.

    def add_frozen(self, name: str, network: Any) -> Any:
        """Hold a network that is neither trained nor saved, in evaluation mode, and return it."""
        self.frozen_networks[name] = network.requires_grad_(False).eval()
        return network

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Split the trained parameters into groups for the optimiser.

        Args:
            lr: the stage's learning rate.

        Returns:
            Groups as PyTorch optimisers take them, each with the learning rate that its schedule multiplies.
        """
        quantiles = [module.quantiles for module in self.modules() if isinstance(module, EntropyBottleneck)]
        quantile_ids = {id(parameter) for parameter in quantiles}
        remaining = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in quantile_ids]
        groups: list[dict[str, Any]] = [{"params": remaining, "lr": lr}]
        if quantiles:
            groups.append({"params": quantiles, "lr": QUANTILES_LR, "weight_decay": 0.0})
        return groups

    def quantile_loss(self) -> Tensor:
        """The loss of the quantiles of all factorised priors, a scalar, whose gradient reaches nothing else.

        It is computed in float32, because the tails of the distributions need the precision.
        """
        with torch.autocast(self.device.type, enabled=False):
            return torch.stack([m.auxiliary_loss() for m in self.modules() if isinstance(m, EntropyBottleneck)]).sum()

    def export(self, folder: Path) -> None:
        """Write the files that the codec loads, with the current weights, which stay as they are."""
        raise NotImplementedError

    def pixels(self, batch: Mapping[str, Any]) -> Tensor:
        """Move a batch's pixels to the device: float32 (B, 3, H, W) in [0, 1], in channels-last memory format."""
        pixels = batch["pixels"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return pixels.float() / 255


def bits_per_pixel(likelihoods: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """Estimate the rate from probabilities; the real rate is counted on streams.

    Args:
        likelihoods: the probability of each element of each latent, by the latent's name; tensors of any shape.
        pixels: the batch (B, C, H, W) that the latents code.

    Returns:
        Bits of all latents per pixel of the batch, a scalar.
    """
    count = pixels.shape[0] * pixels.shape[2] * pixels.shape[3]
    return torch.stack([-torch.log2(likelihood).sum() for likelihood in likelihoods.values()]).sum() / count
