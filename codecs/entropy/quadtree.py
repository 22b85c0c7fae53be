"""Quadtree4: four passes over y, each coding every position in one quarter of the channels.

In pass k, channel group g is coded at position PASSES[k][g] of every 2x2 block (0 1 / 2 3), so that each pass sees, in every group,
neighbours that earlier passes have decoded. One context network is shared by all passes, with adapters of each pass around it.

    base <- h_s(z_hat)
    each pass k:  scales, means <- adapter_out[k](context(adapter_in[k](base)))     at the positions of pass k
                  y_k <- decoded symbols + means (+ residual[k](y_k, base), bounded to +-1/2)
                  base <- y_k at the positions of pass k, base elsewhere

Origin: Li et al., "Neural Video Compression with Diverse Contexts" (CVPR 2023); in image codecs StableCodec and CADC.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.checkerboard import Arithmetic, Coder, Order, _rows
from icmbench.codecs.entropy.models import GaussianConditional, round_ste

PASSES = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))


class Quadtree4(nn.Module):
    """Four-pass context model over y (B, channels, H, W), channels divisible by 4.

    adapters_in, context, adapters_out: channels -> any -> any -> 2 channels. residual: four nets, 2 channels -> channels, that
    predict the rounding error (StableCodec has them, CADC does not), or None.
    """

    def __init__(
        self,
        channels: int,
        adapters_in: Sequence[nn.Module],
        context: nn.Module,
        adapters_out: Sequence[nn.Module],
        residual: Sequence[nn.Module] | None = None,
        order: Order = "means_scales",
    ) -> None:
        super().__init__()
        self.channels, self.order = channels, order
        self.adapters_in, self.adapters_out = nn.ModuleList(adapters_in), nn.ModuleList(adapters_out)
        self.context = context
        self.residual = nn.ModuleList(residual or ())
        self.bound = nn.Tanh()

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(scales, means) of a parameter map."""
        first, second = parameters.chunk(2, 1)
        return (first, second) if self.order == "scales_means" else (second, first)

    def forward(self, y: Tensor, hyper: Tensor, gaussian: GaussianConditional) -> tuple[Tensor, Tensor]:
        """y_hat (rounded around the means, straight-through) and the likelihoods of y, in `gaussian`'s mode. hyper: h_s(z_hat)."""
        base, scales, means = hyper, torch.zeros_like(y), torch.zeros_like(y)
        for k in range(4):
            here = _mask(k, self.channels, *y.shape[-2:]).to(y.device)
            scales_k, means_k = self.split(self.adapters_out[k](self.context(self.adapters_in[k](base))))
            y_k = torch.where(here, round_ste(y - means_k) + means_k, 0)
            if self.residual:
                y_k = y_k + 0.5 * self.bound(self.residual[k](torch.cat([y_k, base], 1)) * here)
            base = torch.where(here, y_k, base)
            scales, means = torch.where(here, scales_k, scales), torch.where(here, means_k, means)
        return base, gaussian(y, scales, means)[1]

    def prepare(self, arithmetic: Arithmetic) -> PreparedQuadtree4:
        """The sequential path in one arithmetic, with the weights as they are now."""
        return PreparedQuadtree4(self, arithmetic)


class PreparedQuadtree4:
    """Quadtree4 for coding. A pass hands the coder one row a position, a quarter of the channels wide."""

    def __init__(self, model: Quadtree4, arithmetic: Arithmetic) -> None:
        self._model, self._snap = model, arithmetic.snap
        self._context = arithmetic.prepare(model.context)
        self._in = [arithmetic.prepare(net) for net in model.adapters_in]
        self._out = [arithmetic.prepare(net) for net in model.adapters_out]
        self._residual = [arithmetic.prepare(net) for net in model.residual]
        self._bound = arithmetic.prepare(model.bound)

    def code(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor:
        """y_hat (1, channels, H, W) float32, coded from y or read. hyper: (1, channels, H, W) as the prepared h_s gave it."""
        model, (height, width) = self._model, hyper.shape[-2:]
        base = hyper.contiguous(memory_format=torch.channels_last)
        target_rows = None if y is None else _rows(y)
        for k in range(4):
            scales, means = model.split(self._out[k](self._context(self._in[k](base))))
            place = _places(k, model.channels, height, width)
            target = None if target_rows is None else target_rows.gather(1, place)
            decoded = coder.code(_rows(scales).gather(1, place), _rows(means).gather(1, place), target)
            base_rows = _rows(base)
            if self._residual:
                y_k = torch.zeros_like(base_rows).scatter_(1, place, decoded)
                joined = torch.cat([y_k, base_rows], 1).view(1, height, width, -1).permute(0, 3, 1, 2)
                correction = self._bound(_rows(self._residual[k](joined)).gather(1, place))
                decoded = decoded + self._snap(0.5 * correction)
            base = base_rows.scatter(1, place, decoded).view(1, height, width, -1).permute(0, 3, 1, 2)
        return base.float()


def _quarter(k: int, height: int, width: int) -> np.ndarray:
    """(height * width,) channel group that pass k codes at each position; each permutation is its own inverse."""
    row, column = np.divmod(np.arange(height * width), width)
    return np.array(PASSES[k])[2 * (row % 2) + column % 2]


@functools.lru_cache(maxsize=64)
def _places(k: int, channels: int, height: int, width: int) -> Tensor:
    """(height * width, channels / 4) channels that pass k codes at each position."""
    quarter = channels // 4
    return torch.from_numpy(_quarter(k, height, width)[:, None] * quarter + np.arange(quarter))


@functools.lru_cache(maxsize=64)
def _mask(k: int, channels: int, height: int, width: int) -> Tensor:
    """(channels, height, width) bool: what pass k codes."""
    mask = torch.zeros(height * width, channels, dtype=torch.bool).scatter_(1, _places(k, channels, height, width), True)
    return mask.T.reshape(channels, height, width)
