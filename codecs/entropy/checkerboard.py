"""SCCTX, the context model of ELIC: uneven channel slices, each coded in two checkerboard passes.

    hyper parameters ------------------------------+-----------------+
    decoded slices --channel context (5x5 convs)---+-----------------+
                                                   |                 |
                                          anchor parameters   non-anchor parameters <--spatial context-- anchors of this slice
                                                   |                 |
                                             scales, means     scales, means

`SCCTX.forward` is for training and computes what published code computes. `PreparedSCCTX.code` is for coding: each pass computes
only the positions that it codes, in place, as rows (positions x channels).

Source: He et al., "ELIC", CVPR 2022, section 3.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from icmbench.codecs.entropy.context import Arithmetic, ParameterOrder, PassCoder, to_map, to_rows
from icmbench.codecs.entropy.exact import Net
from icmbench.codecs.entropy.models import GaussianConditional, add_noise, round_ste

Parity: TypeAlias = Literal["even", "odd"]
ChannelSupport: TypeAlias = Literal["all", "first_and_previous"]
HiddenWidths: TypeAlias = Callable[[int, int], tuple[int, int]]  # (inputs, outputs) -> the two hidden widths of a parameter net


def ratio_widths(inputs: int, outputs: int) -> tuple[int, int]:
    """Hidden widths of 5/3 and 4/3 of the outputs, as in Diff-ICMH and the ELIC re-implementations that it is built on.

    Args:
        inputs: Input channels of a parameter net.
        outputs: Its output channels.
    """
    return outputs * 5 // 3, outputs * 4 // 3


def ramp_widths(smallest: int) -> HiddenWidths:
    """Hidden widths on a linear ramp from inputs to outputs, as in CompressAI's Elic2022Official with `smallest` = 2 N.

    Args:
        smallest: Lower bound of the widths.
    """

    def widths(inputs: int, outputs: int) -> tuple[int, int]:
        ramp = torch.linspace(inputs, outputs, 4, dtype=torch.float32).floor().int().tolist()
        return max(ramp[1], smallest), max(ramp[2], smallest)

    return widths


def fixed_widths(first: int, second: int) -> HiddenWidths:
    """Equal hidden widths for all slices, as in the Chandelier checkpoints with 640 and 512."""
    return lambda inputs, outputs: (first, second)


def _parameter_net(inputs: int, outputs: int, widths: HiddenWidths, activation: type[nn.Module]) -> nn.Sequential:
    """Three 1x1 convolutions."""
    a, b = widths(inputs, outputs)
    return nn.Sequential(nn.Conv2d(inputs, a, 1), activation(), nn.Conv2d(a, b, 1), activation(), nn.Conv2d(b, outputs, 1))


class SCCTX(nn.Module):
    """Space-channel context model.

    Args:
        slices: Channels of each slice of y.
        hyper_channels: Channels of the hyper parameters.
        parity: Which positions (row, column) are anchors: "even" for an even sum, such as (0, 0) and (1, 1), or "odd".
        order: How the output channels of a parameter net split.
        support: Which earlier slices a channel context sees.
        separate: Give anchors a parameter net of their own, without the spatial input. Otherwise one net serves both, and sees
            zeros as the spatial context of anchors.
        parameter_widths: Hidden widths of the parameter nets.
        context_widths: Hidden widths of the channel contexts.
        activation: Class of the activation function in all nets.
    """

    def __init__(
        self,
        slices: Sequence[int],
        hyper_channels: int,
        *,
        parity: Parity = "even",
        order: ParameterOrder = "scales_means",
        support: ChannelSupport = "all",
        separate: bool = False,
        parameter_widths: HiddenWidths = ratio_widths,
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
            self.parameters_nonanchor.append(_parameter_net(inputs + 2 * c, 2 * c, parameter_widths, activation))
            if separate:
                self.parameters_anchor.append(_parameter_net(inputs, 2 * c, parameter_widths, activation))

    def _support(self, k: int, support: ChannelSupport) -> list[tuple[int, int]]:
        """Spans (start, stop) of y's channels that the channel context of slice k sees."""
        spans = list(zip(self.starts, self.starts[1:]))[:k]
        return [spans[0], spans[-1]] if support == "first_and_previous" and k > 1 else [(0, self.starts[k])] if k else []

    def split(self, parameters: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """(scales, means) of the output of a parameter net, whose channels are dimension `dim`."""
        first, second = parameters.chunk(2, dim)
        return (first, second) if self.order == "scales_means" else (second, first)

    def _anchors(self, y: Tensor) -> Tensor:
        """(H, W) bool."""
        rows, columns = (torch.arange(n, device=y.device) for n in y.shape[-2:])
        return (rows[:, None] + columns) % 2 == (self.parity == "odd")

    def forward(
        self, y: Tensor, hyper: Tensor, gaussian: GaussianConditional, *, noisy_context: bool = False
    ) -> tuple[Tensor, Tensor]:
        """y_hat and likelihoods of whole maps.

        Args:
            y: (B, sum(slices), H, W) latents.
            hyper: (B, hyper_channels, H, W) hyper parameters.
            gaussian: The probability model of y. Its mode decides between noise and rounding in the likelihoods.
            noisy_context: In training, let y with noise stand for y_hat, as in the first phase of the Chandelier recipe.

        Returns:
            y_hat, rounded around the means with a straight-through gradient; and the likelihoods of y. Both have the shape of y.
        """
        anchors = self._anchors(y)
        decoded_slices: list[Tensor] = []
        likelihoods: list[Tensor] = []
        for k, (start, stop) in enumerate(zip(self.starts, self.starts[1:])):
            target = y[:, start:stop]
            decoded = torch.cat(decoded_slices, 1) if decoded_slices else target[:, :0]
            seen = [decoded[:, a:b] for a, b in self.supports[k]]
            shared = [self.channel_context[k](torch.cat(seen, 1)), hyper] if k else [hyper]
            no_spatial = [] if self.separate else [torch.zeros_like(target).repeat(1, 2, 1, 1)]
            net = self.parameters_anchor[k] if self.separate else self.parameters_nonanchor[k]
            scales_a, means_a = self.split(net(torch.cat([*no_spatial, *shared], 1)), 1)
            noise = add_noise(target) if noisy_context and self.training else None
            hat_a = round_ste(target - means_a) + means_a if noise is None else noise
            spatial = self.spatial_context[k](torch.where(anchors, hat_a, 0))
            scales_n, means_n = self.split(self.parameters_nonanchor[k](torch.cat([spatial, *shared], 1)), 1)
            hat_n = round_ste(target - means_n) + means_n if noise is None else noise
            scales, means = torch.where(anchors, scales_a, scales_n), torch.where(anchors, means_a, means_n)
            likelihoods.append(gaussian(target, scales, means)[1])
            decoded_slices.append(torch.where(anchors, hat_a, hat_n))
        return torch.cat(decoded_slices, 1), torch.cat(likelihoods, 1)

    def prepare(self, arithmetic: Arithmetic) -> PreparedSCCTX:
        """The model for coding in one arithmetic, with its weights as they are now."""
        return PreparedSCCTX(self, arithmetic)


class PreparedSCCTX:
    """SCCTX for coding one image. Networks run on the rows of the coded positions, as maps (1, C, positions, 1).

    Args:
        model: The context model.
        arithmetic: What its networks are computed in.
    """

    def __init__(self, model: SCCTX, arithmetic: Arithmetic) -> None:
        self._model, self._dtype, self._admit = model, arithmetic.dtype, arithmetic.admit
        self._channel: list[Net] = [arithmetic.prepare(net) for net in model.channel_context]
        self._spatial: list[Net] = []
        self._anchor: list[Net] = []
        self._nonanchor: list[Net] = [arithmetic.prepare(net, trusting=True) for net in model.parameters_nonanchor]
        for k, spatial in enumerate(model.spatial_context):
            self._spatial.append(arithmetic.prepare(_as_pointwise(spatial)))
            if model.separate:
                anchor: nn.Module = model.parameters_anchor[k]
            else:
                anchor = _without_first(model.parameters_nonanchor[k], 2 * model.slices[k])
            self._anchor.append(arithmetic.prepare(anchor, trusting=True))

    def code(self, hyper: Tensor, coder: PassCoder, y: Tensor | None = None) -> Tensor:
        """y_hat (1, sum(slices), H, W) float32.

        Args:
            hyper: (1, hyper_channels, H, W) hyper parameters, as the prepared h_s computes them.
            coder: Codes each pass.
            y: (1, sum(slices), H, W) latents to encode; None to decode.
        """
        model = self._model
        height, width = hyper.shape[-2:]
        hyper_rows = to_rows(self._admit(hyper))
        target_rows = None if y is None else to_rows(y)
        y_rows = torch.zeros((height * width, model.starts[-1]), dtype=self._dtype)
        y_hat = y_rows.view(1, height, width, -1).permute(0, 3, 1, 2)  # This is a view, so the map sees at once what a pass writes.
        anchors, nonanchors, neighbours = _positions(height, width, model.parity)
        for k, (start, stop) in enumerate(zip(model.starts, model.starts[1:])):
            channel = None
            if k:
                seen = [y_hat[:, a:b] for a, b in model.supports[k]]
                channel = to_rows(self._channel[k](seen[0] if len(seen) == 1 else torch.cat(seen, 1)))
            for positions, net in ((anchors, self._anchor[k]), (nonanchors, self._nonanchor[k])):
                inputs = [] if channel is None else [channel[positions]]
                if positions is nonanchors:
                    padded = torch.cat([y_rows[:, start:stop], y_rows.new_zeros(1, stop - start)])
                    inputs.insert(0, to_rows(self._spatial[k](to_map(padded[neighbours].flatten(1)))))
                parameters = to_rows(net(to_map(torch.cat([*inputs, hyper_rows[positions]], 1))))
                scales, means = model.split(parameters, 1)
                target = None if target_rows is None else target_rows[positions, start:stop]
                y_rows[positions, start:stop] = coder.code(scales, means, target)
        return y_hat.float()


# Offsets (rows, columns) of a 5x5 kernel's taps that see anchors from a non-anchor.
_TAPS = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2]


@functools.lru_cache(maxsize=16)
def _positions(height: int, width: int, parity: Parity) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indexes of the anchors (a,), of the non-anchors (n,), and of the 12 anchors around each non-anchor (n, 12).

    The index height * width stands for positions outside the map.
    """
    row, column = np.divmod(np.arange(height * width), width)
    is_anchor = (row + column) % 2 == (parity == "odd")
    nonanchors = np.flatnonzero(~is_anchor)
    near_row = row[nonanchors, None] + [dy for dy, _ in _TAPS]
    near_column = column[nonanchors, None] + [dx for _, dx in _TAPS]
    inside = (near_row >= 0) & (near_row < height) & (near_column >= 0) & (near_column < width)
    neighbours = np.where(inside, near_row * width + near_column, height * width)
    return torch.from_numpy(np.flatnonzero(is_anchor)), torch.from_numpy(nonanchors), torch.from_numpy(neighbours)


def _as_pointwise(conv: nn.Module) -> nn.Conv2d:
    """A 5x5 spatial context as a 1x1 convolution over the 12 anchors around a non-anchor; its other 13 taps only see zeros."""
    assert isinstance(conv, nn.Conv2d)
    weight = torch.stack([conv.weight.detach()[:, :, dy + 2, dx + 2] for dy, dx in _TAPS], 1)
    return _pointwise_like(conv, weight.flatten(1)[:, :, None, None])


def _without_first(net: nn.Module, channels: int) -> nn.Sequential:
    """A pointwise net without its first input channels, for inputs where these are zero."""
    head, *tail = net.children()
    assert isinstance(head, nn.Conv2d)
    return nn.Sequential(_pointwise_like(head, head.weight.detach()[:, channels:]), *tail)


def _pointwise_like(conv: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    """A 1x1 convolution with this weight and the bias of `conv`. Unlike a new layer, a copy draws no random numbers."""
    pointwise = copy.copy(conv)
    pointwise._parameters = {**conv._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    pointwise.in_channels, pointwise.kernel_size, pointwise.padding = weight.shape[1], (1, 1), (0, 0)
    return pointwise
