"""ELIC from scratch: rate + MSE."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from icmbench.codecs import elic, elic_model
from icmbench.codecs.training.objective import Objective, bits_per_pixel


class ElicObjective(Objective):
    """ELIC (He et al. 2022): lambda * 255^2 * MSE + bpp, as the Chandelier re-implementation trains it.

    variant, n, m, slices, context_widths, parameter_width: as of the network. latents: what the decoder sees in training, "noise"
    first, rounded ("ste") at the end.
    """

    codec = "elic"
    default_points = elic.LAMBDAS
    prefix = "network."
    pad = elic_model.STRIDE

    def __init__(
        self,
        point: float,
        *,
        variant: Literal["official", "chandelier"] = "chandelier",
        n: int = 192,
        m: int = 320,
        slices: list[int] | None = None,
        context_widths: tuple[int, int] = (224, 128),
        parameter_width: int = 512,
        latents: Literal["noise", "ste"] = "noise",
        device: str = "cpu",
    ) -> None:
        super().__init__(point, device)
        self._name = elic_model.file_name(point)
        self.network = elic_model.ElicNetwork(variant, n, m, slices, context_widths, parameter_width).to(device)
        self._noisy = latents == "noise"
        self.weights = {"mse": point * 255**2, "bpp": 1.0, "auxiliary": 1.0}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = self.pixels(batch)
        with torch.autocast(self.device.type, enabled=False):  # probabilities need float32
            out = self.network(pixels, noisy_context=self._noisy)
        return {
            "mse": F.mse_loss(out["x_hat"], pixels),
            "bpp": bits_per_pixel(out["likelihoods"], pixels),
            "auxiliary": self.auxiliary(),
        }

    def export(self, folder: Path) -> None:
        network = copy.deepcopy(self.network).cpu().eval()
        network.update()
        elic_model.save(network, folder / self._name)
