"""Quadtree4, a context model of four passes over y. Each pass codes a quarter of the channels at every position.

Pass k codes channel group g at position PASSES[k][g] of every 2x2 block (0 1 / 2 3). Each pass therefore sees, in every group,
neighbours that earlier passes have decoded. All passes share one context network, with adapters of each pass before and after it.

    base <- h_s(z_hat)
    each pass k:  scales, means <- adapter_out[k](context(adapter_in[k](base)))     at the positions of pass k
                  y_k <- decoded symbols + means (+ residual[k](y_k, base), bounded to +-1/2)
                  base <- y_k at the positions of pass k, base elsewhere

Source: Li et al., "Neural Video Compression with Diverse Contexts", CVPR 2023. StableCodec and CADC use it for images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.context import Arithmetic, ParameterOrder, PassCoder, to_rows
from icmbench.codecs.entropy.models import GaussianConditional, round_ste

# The position in a 2x2 block that each pass (row) codes in each channel group (column).
PASSES = ((0, 1, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))


class Quadtree4(nn.Module):
    """Four-pass context model.

    Args:
        channels: Channels of y, a multiple of 4.
        adapters_in: One net per pass, from `channels` to the context network's inputs.
        context: The shared context network.
        adapters_out: One net per pass, from the context network's outputs to 2 x `channels`.
        residual: One net per pass, from 2 x `channels` to `channels`, that predicts the rounding error; None for no prediction.
            StableCodec has these nets, CADC does not.
        order: How the output channels of `adapters_out` split.
    """

    def __init__(
        self,
        channels: int,
        adapters_in: Sequence[nn.Module],
        context: nn.Module,
        adapters_out: Sequence[nn.Module],
        residual: Sequence[nn.Module] | None = None,
        order: ParameterOrder = "means_scales",
    ) -> None:
        super().__init__()
        self.channels, self.order = channels, order
        self.adapters_in, self.adapters_out = nn.ModuleList(adapters_in), nn.ModuleList(adapters_out)
        self.context = context
        self.residual = nn.ModuleList(residual or ())
        self.bound = nn.Tanh()

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(scales, means) of the output (B, 2 x channels, H, W) of an adapter."""
        first, second = parameters.chunk(2, 1)
        return (first, second) if self.order == "scales_means" else (second, first)

    def forward(self, y: Tensor, hyper: Tensor, gaussian: GaussianConditional) -> tuple[Tensor, Tensor]:
        """y_hat and likelihoods of whole maps.

        Args:
            y: (B, channels, H, W) latents.
            hyper: (B, channels, H, W) hyper parameters h_s(z_hat).
            gaussian: The probability model of y. Its mode decides between noise and rounding in the likelihoods.

        Returns:
            y_hat, rounded around the means with a straight-through gradient; and the likelihoods of y. Both have the shape of y.
        """
        base, scales, means = hyper, torch.zeros_like(y), torch.zeros_like(y)
        for k in range(4):
            coded = _mask(k, self.channels, *y.shape[-2:]).to(y.device)
            scales_k, means_k = self.split(self.adapters_out[k](self.context(self.adapters_in[k](base))))
            y_k = torch.where(coded, round_ste(y - means_k) + means_k, 0)
            if self.residual:
                y_k = y_k + 0.5 * self.bound(self.residual[k](torch.cat([y_k, base], 1)) * coded)
            base = torch.where(coded, y_k, base)
            scales, means = torch.where(coded, scales_k, scales), torch.where(coded, means_k, means)
        return base, gaussian(y, scales, means)[1]

    def prepare(self, arithmetic: Arithmetic) -> PreparedQuadtree4:
        """The model for coding in one arithmetic, with its weights as they are now."""
        return PreparedQuadtree4(self, arithmetic)


class PreparedQuadtree4:
    """Quadtree4 for coding one image. Each pass gives its coder one row per position, a quarter of the channels wide.

    Args:
        model: The context model.
        arithmetic: What its networks are computed in.
    """

    def __init__(self, model: Quadtree4, arithmetic: Arithmetic) -> None:
        self._model, self._snap = model, arithmetic.snap
        self._context = arithmetic.prepare(model.context)
        self._in = [arithmetic.prepare(net) for net in model.adapters_in]
        self._out = [arithmetic.prepare(net) for net in model.adapters_out]
        self._residual = [arithmetic.prepare(net) for net in model.residual]
        self._bound = arithmetic.prepare(model.bound)

    def code(self, hyper: Tensor, coder: PassCoder, y: Tensor | None = None) -> Tensor:
        """y_hat (1, channels, H, W) float32.

        Args:
            hyper: (1, channels, H, W) hyper parameters, as the prepared h_s computes them.
            coder: Codes each pass.
            y: (1, channels, H, W) latents to encode; None to decode.
        """
        model, (height, width) = self._model, hyper.shape[-2:]
        base = hyper.contiguous(memory_format=torch.channels_last)
        target_rows = None if y is None else to_rows(y)
        for k in range(4):
            scales, means = model.split(self._out[k](self._context(self._in[k](base))))
            columns = _coded_channels(k, model.channels, height, width)
            target = None if target_rows is None else target_rows.gather(1, columns)
            decoded = coder.code(to_rows(scales).gather(1, columns), to_rows(means).gather(1, columns), target)
            base_rows = to_rows(base)
            if self._residual:
                y_k = torch.zeros_like(base_rows).scatter_(1, columns, decoded)
                joined = torch.cat([y_k, base_rows], 1).view(1, height, width, -1).permute(0, 3, 1, 2)
                correction = self._bound(to_rows(self._residual[k](joined)).gather(1, columns))
                decoded = decoded + self._snap(0.5 * correction)
            base = base_rows.scatter(1, columns, decoded).view(1, height, width, -1).permute(0, 3, 1, 2)
        return base.float()


def _coded_group(k: int, height: int, width: int) -> np.ndarray:
    """(height * width,) channel group that pass k codes at each position."""
    # PASSES maps groups to positions. Each of its permutations is its own inverse, so it also maps positions to groups.
    row, column = np.divmod(np.arange(height * width), width)
    return np.array(PASSES[k])[2 * (row % 2) + column % 2]


@functools.lru_cache(maxsize=64)
def _coded_channels(k: int, channels: int, height: int, width: int) -> Tensor:
    """(height * width, channels / 4) channels that pass k codes at each position."""
    quarter = channels // 4
    return torch.from_numpy(_coded_group(k, height, width)[:, None] * quarter + np.arange(quarter))


@functools.lru_cache(maxsize=64)
def _mask(k: int, channels: int, height: int, width: int) -> Tensor:
    """(channels, height, width) bool: where pass k codes."""
    mask = torch.zeros(height * width, channels, dtype=torch.bool).scatter_(1, _coded_channels(k, channels, height, width), True)
    return mask.T.reshape(channels, height, width)
