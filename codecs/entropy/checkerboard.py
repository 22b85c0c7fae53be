"""SCCTX: uneven channel slices, each coded in two checkerboard passes (He et al., ELIC, CVPR 2022, section 3).

    hyper parameters ------------------------------+-----------------+
    decoded slices --channel context (5x5 convs)---+-----------------+
                                                   |                 |
                                          anchor parameters   non-anchor parameters <--spatial context-- anchors of this slice
                                                   |                 |
                                             scales, means     scales, means

`forward` is what training sees and what published code computes. `code` is the sequential path: both passes compute only the
positions they code, in place, on rows (positions x channels).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.exact import Net
from icmbench.codecs.entropy.models import GaussianConditional, add_noise, round_ste

Parity = Literal["even", "odd"]
Order = Literal["scales_means", "means_scales"]
Support = Literal["all", "first_and_previous"]
Widths = Callable[[int, int], tuple[int, int]]  # (inputs, outputs) -> hidden widths of a parameter net


class Arithmetic(Protocol):
    """How networks are computed between symbols: exact.Float32 or integer.FixedPoint."""

    name: str
    dtype: torch.dtype

    def prepare(self, module: nn.Module) -> Any: ...

    def snap(self, x: Tensor) -> Tensor: ...


class Coder(Protocol):
    """Codes one pass: the encoder quantises `target`, the decoder reads; both return symbols + means."""

    def code(self, scales: Tensor, means: Tensor, target: Tensor | None) -> Tensor: ...


def ratio_widths(inputs: int, outputs: int) -> tuple[int, int]:
    """5/3 and 4/3 of the outputs: Diff-ICMH and the ELIC re-implementations behind it."""
    return outputs * 5 // 3, outputs * 4 // 3


def ramp_widths(least: int) -> Widths:
    """A linear ramp from inputs to outputs, never below `least`: CompressAI's Elic2022Official with least = 2 N."""

    def widths(inputs: int, outputs: int) -> tuple[int, int]:
        ramp = torch.linspace(inputs, outputs, 4, dtype=torch.float32).floor().int().tolist()
        return max(ramp[1], least), max(ramp[2], least)

    return widths


def fixed_widths(first: int, second: int) -> Widths:
    """The same two widths everywhere: the Chandelier checkpoints with 640 and 512."""
    return lambda inputs, outputs: (first, second)


def _pointwise(inputs: int, outputs: int, widths: Widths, activation: type[nn.Module]) -> nn.Sequential:
    a, b = widths(inputs, outputs)
    return nn.Sequential(nn.Conv2d(inputs, a, 1), activation(), nn.Conv2d(a, b, 1), activation(), nn.Conv2d(b, outputs, 1))


class SCCTX(nn.Module):
    """Space-channel context model over y (B, sum(slices), H, W) and hyper parameters (B, hyper_channels, H, W).

    parity: which positions are anchors: "even" (0,0), (1,1) or "odd" (0,1), (1,0).
    order: how a parameter net's output splits.
    support: the slices that a channel context sees.
    separate: anchors have a parameter net of their own, without the spatial input; else one net sees zeros in its place.
    """

    def __init__(
        self,
        slices: Sequence[int],
        hyper_channels: int,
        *,
        parity: Parity = "even",
        order: Order = "scales_means",
        support: Support = "all",
        separate: bool = False,
        parameter_widths: Widths = ratio_widths,
        context_widths: tuple[int, int] = (224, 128),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.slices, self.parity, self.order, self.separate = tuple(slices), parity, order, separate
        self.starts = tuple(accumulate(slices, initial=0))
        self.supports = [self._support(k, support) for k in range(len(slices))]
        first, second = context_widths
        self.spatial_context = nn.ModuleList(nn.Conv2d(c, 2 * c, 5, padding=2) for c in slices)
        self.channel_context = nn.ModuleList()
        self.parameters_nonanchor = nn.ModuleList()
        self.parameters_anchor = nn.ModuleList()
        for k, c in enumerate(slices):
            seen = sum(stop - start for start, stop in self.supports[k])
            widths = (seen, first, second, 2 * c) if k else ()
            layers = [layer for a, b in pairwise(widths) for layer in (nn.Conv2d(a, b, 5, padding=2), activation())]
            self.channel_context.append(nn.Sequential(*layers[:-1]))
            inputs = hyper_channels + (2 * c if k else 0)
            self.parameters_nonanchor.append(_pointwise(inputs + 2 * c, 2 * c, parameter_widths, activation))
            if separate:
                self.parameters_anchor.append(_pointwise(inputs, 2 * c, parameter_widths, activation))

    def _support(self, k: int, support: Support) -> list[tuple[int, int]]:
        spans = list(zip(self.starts, self.starts[1:]))[:k]
        return [spans[0], spans[-1]] if support == "first_and_previous" and k > 1 else [(0, self.starts[k])] if k else []

    def _split(self, parameters: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, second = parameters.chunk(2, dim)
        return (first, second) if self.order == "scales_means" else (second, first)

    def _anchors(self, y: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, device=y.device) for n in y.shape[-2:])
        return (rows[:, None] + columns) % 2 == (self.parity == "odd")

    def forward(
        self, y: Tensor, hyper: Tensor, gaussian: GaussianConditional, *, noisy_context: bool = False
    ) -> tuple[Tensor, Tensor]:
        """y_hat (rounded around the means, straight-through) and the likelihoods of y, in `gaussian`'s mode.

        noisy_context: in training, y with noise stands for y_hat, as in the first phase of the Chandelier recipe.
        """
        anchors = self._anchors(y)
        done: list[Tensor] = []
        likelihoods: list[Tensor] = []
        for k, (start, stop) in enumerate(zip(self.starts, self.starts[1:])):
            target = y[:, start:stop]
            decoded = torch.cat(done, 1) if done else target[:, :0]
            seen = [decoded[:, a:b] for a, b in self.supports[k]]
            known = [self.channel_context[k](torch.cat(seen, 1)), hyper] if k else [hyper]
            blank = [] if self.separate else [torch.zeros_like(target).repeat(1, 2, 1, 1)]
            net = self.parameters_anchor[k] if self.separate else self.parameters_nonanchor[k]
            scales_a, means_a = self._split(net(torch.cat([*blank, *known], 1)), 1)
            noise = add_noise(target) if noisy_context and self.training else None
            hat_a = round_ste(target - means_a) + means_a if noise is None else noise
            spatial = self.spatial_context[k](torch.where(anchors, hat_a, 0))
            scales_n, means_n = self._split(self.parameters_nonanchor[k](torch.cat([spatial, *known], 1)), 1)
            hat_n = round_ste(target - means_n) + means_n if noise is None else noise
            scales, means = torch.where(anchors, scales_a, scales_n), torch.where(anchors, means_a, means_n)
            likelihoods.append(gaussian(target, scales, means)[1])
            done.append(torch.where(anchors, hat_a, hat_n))
        return torch.cat(done, 1), torch.cat(likelihoods, 1)

    def prepare(self, arithmetic: Arithmetic) -> PreparedSCCTX:
        """The sequential path in one arithmetic, with the weights as they are now."""
        return PreparedSCCTX(self, arithmetic)


class PreparedSCCTX:
    """SCCTX for coding. Maps are (1, C, H, W); rows are the same numbers as (1, C, positions, 1)."""

    def __init__(self, model: SCCTX, arithmetic: Arithmetic) -> None:
        self._model, self._dtype = model, arithmetic.dtype
        self._channel: list[Net] = [arithmetic.prepare(net) for net in model.channel_context]
        self._spatial: list[Net] = []
        self._anchor: list[Net] = []
        self._nonanchor: list[Net] = [arithmetic.prepare(net) for net in model.parameters_nonanchor]
        for k, spatial in enumerate(model.spatial_context):
            self._spatial.append(arithmetic.prepare(_gathered(spatial)))
            if model.separate:
                self._anchor.append(arithmetic.prepare(model.parameters_anchor[k]))
            else:
                self._anchor.append(arithmetic.prepare(_without_first(model.parameters_nonanchor[k], 2 * model.slices[k])))

    def code(self, hyper: Tensor, coder: Coder, y: Tensor | None = None) -> Tensor:
        """y_hat (1, C, H, W) float32, coded from y or read. hyper: (1, hyper_channels, H, W) as the prepared h_s gave it."""
        model = self._model
        height, width = hyper.shape[-2:]
        hyper_rows = _rows(hyper)
        target_rows = None if y is None else _rows(y)
        y_rows = torch.zeros((height * width, model.starts[-1]), dtype=self._dtype)
        y_hat = y_rows.view(1, height, width, -1).permute(0, 3, 1, 2)  # a view: what a pass writes is in the map at once
        anchors, others, neighbours = _positions(height, width, model.parity)
        for k, (start, stop) in enumerate(zip(model.starts, model.starts[1:])):
            channel = None
            if k:
                seen = [y_hat[:, a:b] for a, b in model.supports[k]]
                channel = _rows(self._channel[k](seen[0] if len(seen) == 1 else torch.cat(seen, 1)))
            for places, net in ((anchors, self._anchor[k]), (others, self._nonanchor[k])):
                parts = [] if channel is None else [channel[places]]
                if places is others:
                    padded = torch.cat([y_rows[:, start:stop], y_rows.new_zeros(1, stop - start)])
                    parts.insert(0, _rows(self._spatial[k](_as_map(padded[neighbours].flatten(1)))))
                parameters = _rows(net(_as_map(torch.cat([*parts, hyper_rows[places]], 1))))
                scales, means = model._split(parameters, 1)
                target = None if target_rows is None else target_rows[places, start:stop]
                y_rows[places, start:stop] = coder.code(scales, means, target)
        return y_hat.float()


def _rows(x: Tensor) -> Tensor:
    """(1, C, H, W) -> (H * W, C), a view where x is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _as_map(rows: Tensor) -> Tensor:
    """(positions, C) -> (1, C, positions, 1), channels-last, a view."""
    return rows.view(1, rows.shape[0], 1, rows.shape[1]).permute(0, 3, 1, 2)


_TAPS = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]


@functools.lru_cache(maxsize=16)
def _positions(height: int, width: int, parity: Parity) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indexes of anchors (a,), of the others (n,), and of the 12 anchors around those (n, 12); height * width is outside."""
    row, column = np.divmod(np.arange(height * width), width)
    is_anchor = (row + column) % 2 == (parity == "odd")
    others = np.flatnonzero(~is_anchor)
    near_row = row[others, None] + [dy for dy, _ in _TAPS]
    near_column = column[others, None] + [dx for _, dx in _TAPS]
    inside = (near_row >= 0) & (near_row < height) & (near_column >= 0) & (near_column < width)
    neighbours = np.where(inside, near_row * width + near_column, height * width)
    return torch.from_numpy(np.flatnonzero(is_anchor)), torch.from_numpy(others), torch.from_numpy(neighbours)


def _gathered(conv: nn.Module) -> nn.Conv2d:
    """The 5x5 spatial context as a 1x1 convolution over the 12 gathered anchors; its other 13 taps only ever see zeros."""
    assert isinstance(conv, nn.Conv2d)
    weight = torch.stack([conv.weight.detach()[:, :, dy + 2, dx + 2] for dy, dx in _TAPS], 1)
    return _pointwise_like(conv, weight.flatten(1)[:, :, None, None])


def _without_first(net: nn.Module, channels: int) -> nn.Sequential:
    """A pointwise net whose first input channels are zero."""
    head, *tail = net.children()
    assert isinstance(head, nn.Conv2d)
    return nn.Sequential(_pointwise_like(head, head.weight.detach()[:, channels:]), *tail)


def _pointwise_like(conv: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    """A 1x1 convolution with a bias of another; unlike a new layer, it draws no random numbers."""
    made = copy.copy(conv)
    made._parameters = {**conv._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    made.in_channels, made.kernel_size, made.padding = weight.shape[1], (1, 1), (0, 0)
    return made
