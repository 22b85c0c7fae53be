"""ELIC from scratch: rate and mean squared error."""

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
    """ELIC's loss (He et al. 2022): lambda * 255^2 * MSE + bpp, as the Chandelier re-implementation trains it.

    Args:
        point: lambda, the weight of the distortion.
        variant: "chandelier" has the network of that re-implementation; "official" has the authors'.
        n: channels of the main transforms.
        m: channels of the latent.
        slices: channels of each slice of the latent, whose sum is `m`; by default 16, 16, 32, 64 and the remaining ones.
        context_widths: hidden channels of the channel contexts.
        parameter_width: second hidden width of the Chandelier variant's parameter networks.
        latents: what the decoder sees in training: latents with additive "noise" in the first stage, or rounded ones ("ste", with a
            straight-through gradient) in the last.
        device: PyTorch device.
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
        self._file_name = elic_model.weight_file_name(point)
        self.network = elic_model.ElicNetwork(variant, n, m, slices, context_widths, parameter_width).to(device)
        self._noisy = latents == "noise"
        self.weights = {"mse": point * 255**2, "bpp": 1.0, "auxiliary": 1.0}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = self.pixels(batch)
        with torch.autocast(self.device.type, enabled=False):  # The probabilities need float32.
            out = self.network(pixels, noisy_context=self._noisy)
        return {
            "mse": F.mse_loss(out["x_hat"], pixels),
            "bpp": bits_per_pixel(out["likelihoods"], pixels),
            "auxiliary": self.quantile_loss(),
        }

    def export(self, folder: Path) -> None:
        network = copy.deepcopy(self.network).cpu().eval()
        network.update()
        elic_model.save_network(network, folder / self._file_name)
