"""What is trained, and on which loss: the contract between a recipe and the loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.models import EntropyBottleneck

AUXILIARY_LR = 1e-3  # of the quantiles of factorised priors


class Objective(nn.Module):
    """Base of the objectives. Called with a batch it gives {term: loss}, scalars in float32.

    Registered modules are trained, kept in checkpoints and averaged; frozen ones are held by `freeze`. The constructor takes the
    rate point (None for what has none), its own options by keyword, and `device`, where the loop runs.

    codec: name of the codec that loads what `export` writes. prefix: what the names in its files lack of those here.
    default_points: of a recipe that names none. needs: what the data has to bring, "text", "mask" or "label". pad: crops are
    multiples of it. weights: of each term in the sum that is minimised; terms without a weight are only logged.
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
        self._frozen: dict[str, Any] = {}

    def freeze(self, name: str, module: Any) -> Any:
        """Keep a network beside the trained ones: not trained, not saved."""
        self._frozen[name] = module.requires_grad_(False).eval()
        return module

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: parameters, with the learning rate they start from."""
        quantiles = [module.quantiles for module in self.modules() if isinstance(module, EntropyBottleneck)]
        kept = {id(parameter) for parameter in quantiles}
        others = [parameter for parameter in self.parameters() if parameter.requires_grad and id(parameter) not in kept]
        groups: list[dict[str, Any]] = [{"params": others, "lr": lr}]
        if quantiles:
            groups.append({"params": quantiles, "lr": AUXILIARY_LR, "weight_decay": 0.0})
        return groups

    def auxiliary(self) -> Tensor:
        """The loss of all quantiles, which moves nothing else; in float32, as tails need it."""
        with torch.autocast(self.device.type, enabled=False):
            return torch.stack([m.auxiliary_loss() for m in self.modules() if isinstance(m, EntropyBottleneck)]).sum()

    def export(self, folder: Path) -> None:
        """Write the files that the codec loads, of the weights as they are now, without changing them."""
        raise NotImplementedError

    def pixels(self, batch: Mapping[str, Any]) -> Tensor:
        """The batch's pixels on the device, float32 (B, 3, H, W) in [0, 1], channels last."""
        pixels = batch["pixels"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        return pixels.float() / 255


def bits_per_pixel(likelihoods: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """Estimated rate: bits of all latents over the pixels they code. The real rate is counted on streams."""
    count = pixels.shape[0] * pixels.shape[2] * pixels.shape[3]
    return torch.stack([-torch.log2(likelihood).sum() for likelihood in likelihoods.values()]).sum() / count
