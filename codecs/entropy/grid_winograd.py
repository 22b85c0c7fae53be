"""Convolutions on the fixed-point grid by Winograd's minimal filtering, in float64 and with exact results.

    x --B^T x B--> V         whole numbers of units, exact
    V, U = G w G^T --> M     products summed over input channels, exact
    M --A^T M A--> nearly the sum, to the nearest unit --> the sum

B and G are scaled to whole numbers, and the rows of A divided by what this multiplies. All values up to M are then whole numbers
of units, a unit being a unit of x times one of w. While the largest possible partial sum stays below 2**53 units, float64 holds
all of them exactly, in any order of summation. Only A rounds, and its error has a bound. While this is below half a unit, the
nearest whole number of units is the exact sum. How large x may be (`reach`) follows from both bounds, for the weights at hand.

An x beyond the reach is split into multiples of 2**SPLIT units and a remainder, whose sums are computed apart.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, as in `winograd`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.entropy.exact import run_both
from icmbench.codecs.entropy.winograd import minimal_filtering

_TILE = 4
_SPLIT = 9  # An x that is split keeps this many bits in its remainder.
_MIN_TILES = 12  # A smaller map would take longer than by the direct sum, because its weights are read for few positions.
_MIN_PARALLEL_COST = 5e6  # Multiply-adds of a half, below which one thread computes both.
# A sum of n terms in any order, with rounded coefficients, has at most n roundings per term. A runs twice over at most 8 terms.
_ROUNDINGS = 2 * (8 + 1)
_SAFETY = 0.99  # for the roundings of the bounds themselves


def _whole(row: Sequence[Fraction]) -> tuple[list[Fraction], Fraction]:
    """A row as whole numbers without a common divisor, and what it was multiplied by."""
    factor = Fraction(math.lcm(*(x.denominator for x in row)))
    factor /= math.gcd(*(int(x * factor) for x in row))
    return [x * factor for x in row], factor


@functools.cache
def _matrices(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """A^T (4, n), G (n, kernel) and B^T (n, n), float64, where n = kernel + 3. G and B^T are whole numbers."""
    gather, filters, inputs = minimal_filtering(_TILE, kernel)
    whole_filters, whole_inputs = [_whole(row) for row in filters], [_whole(row) for row in inputs]
    scales = [f * b for (_, f), (_, b) in zip(whole_filters, whole_inputs)]
    scaled = [[a / scale for a, scale in zip(row, scales)] for row in gather]
    rows = (scaled, [row for row, _ in whole_filters], [row for row, _ in whole_inputs])
    a, g, b = (torch.tensor([[float(x) for x in row] for row in matrix], dtype=torch.float64) for matrix in rows)
    return a, g, b


def _upsampling(layer: nn.Module) -> int | None:
    """How much larger a layer's output is than its input, 1 or 2; None if this module cannot compute the layer."""
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.groups > 1 or layer.padding_mode != "zeros":
        return None
    k = layer.kernel_size[0]
    if layer.kernel_size != (k, k) or k not in (3, 5) or layer.padding != (k // 2, k // 2) or layer.dilation != (1, 1):
        return None
    if (layer.stride, layer.output_padding) == ((1, 1), (0, 0)):
        return 1
    doubles = isinstance(layer, nn.ConvTranspose2d) and (k, layer.stride, layer.output_padding) == (5, (2, 2), (1, 1))
    return 2 if doubles else None


def _same_size_weight(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The weight (upsampling**2 * outputs, inputs, k, k), k = 3 or 5, of a same-size convolution that equals the layer.

    After an upsampling of 2, outputs of channel block 2 a + b belong at rows 2 i + a and columns 2 j + b.
    """
    weight = layer.weight.detach()
    if isinstance(layer, nn.Conv2d):
        return weight
    weight = weight.transpose(0, 1)
    if _upsampling(layer) == 1:
        return weight.flip(2, 3)
    taps = torch.tensor([[4, 2, 0], [5, 3, 1]])  # Output 2 i + a sees input i + d through tap a + 2 - 2 d.
    padded = F.pad(weight, (0, 1, 0, 1))  # There is no tap 5, so it is zero.
    return padded[:, :, taps][..., taps].permute(2, 4, 0, 1, 3, 5).flatten(0, 2)


def suits(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.ConvTranspose2d]:
    """Whether this module can compute a layer, and the layer is large enough to become faster by it."""
    if _upsampling(layer) is None or not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return False
    return min(layer.in_channels, layer.out_channels) >= 16 and layer.in_channels * layer.out_channels >= 3000


def is_large_enough(x: Tensor) -> bool:
    """Whether a map (1, C, H, W) is so large that this module computes it faster than a direct sum."""
    height, width = x.shape[-2:]
    return -(-height // _TILE) * -(-width // _TILE) >= _MIN_TILES


class GridWinograd:
    """The exact sum of a convolution on the grid, without its bias.

    Args:
        layer: A layer that this module `suits`, with weights on a grid, in float64.
        activation_step: Step of the grid of x.
        weight_step: Step of the grid of the weights.

    Attributes:
        reach: Largest absolute value of x whose sum is known to be exact in one run.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, activation_step: float, weight_step: float) -> None:
        weight = _same_size_weight(layer)
        self._kernel, self._upsampling = weight.shape[-1], _upsampling(layer)
        self._step, self._unit = activation_step, activation_step * weight_step
        a, g, b = _matrices(self._kernel)
        filters = torch.einsum("ik,ockl,jl->jico", g, weight, g)
        half = len(b) // 2
        self._filters = [filters[:, rows].flatten(0, 1).contiguous() for rows in (slice(half), slice(half, None))]
        self._cost = filters[0, 0].numel() * len(b)
        norms = b.abs().sum(1)
        sums = filters.abs().sum(2).amax(2) * norms[:, None] * norms
        error = _ROUNDINGS * 2.0**-53 * (a.abs() @ sums @ a.abs().T).max()
        # The floors under both bounds only matter for weights near zero; they lower the reach.
        bounds = min(2.0**53 / max(float(sums.max()), 1.0), 0.5 / max(float(error), 2.0**-53))
        self.reach = _SAFETY * self._unit * bounds

    def covers(self, largest: float) -> bool:
        """Whether the sums of a map with this largest absolute value are exact."""
        remainder = self._step * 2.0**_SPLIT  # The remainder of a split x is at most half of it.
        return largest <= self.reach or (remainder <= self.reach and largest + remainder <= self.reach * 2.0**_SPLIT)

    def __call__(self, x: Tensor, largest: float) -> Tensor:
        """The exact sums.

        Args:
            x: (1, inputs, H, W) float64 on the grid.
            largest: Its largest absolute value, which this form `covers`.

        Returns:
            (1, outputs, H * upsampling, W * upsampling) float64, in memory of its own.
        """
        if largest <= self.reach:
            return self._sum(x, self._unit)
        coarse = self._step * 2.0**_SPLIT
        upper = (x / coarse).round_().mul_(coarse)
        return self._sum(upper, self._unit * 2.0**_SPLIT).add_(self._sum(x - upper, self._unit))

    def _sum(self, x: Tensor, unit: float) -> Tensor:
        """The sums of one run, which are multiples of the unit."""
        height, width = x.shape[-2:]
        size, margin = _TILE + self._kernel - 1, self._kernel // 2
        padding = (0, 0, margin, -width % _TILE + margin, margin, -height % _TILE + margin)
        padded = F.pad(x[0].permute(1, 2, 0), padding).contiguous()
        grid = -(-height // _TILE), -(-width // _TILE)
        parallel = self._cost * grid[0] * grid[1] > _MIN_PARALLEL_COST
        half = size // 2
        first, second = run_both(
            lambda: self._half(padded, 0, slice(half), grid), lambda: self._half(padded, 1, slice(half, size), grid), parallel
        )
        tiles = first.add_(second).div_(unit).round_().mul_(unit).view(_TILE, _TILE, *grid, -1)  # columns, rows of a tile
        full = tiles.permute(2, 1, 3, 0, 4).reshape(_TILE * grid[0], _TILE * grid[1], -1)[:height, :width]
        if self._upsampling == 2:
            full = full.unflatten(2, (2, 2, -1)).permute(0, 2, 1, 3, 4).reshape(2 * height, 2 * width, -1)
        return full.permute(2, 0, 1)[None]

    def _half(self, padded: Tensor, half: int, rows: slice, grid: tuple[int, int]) -> Tensor:
        """What half the rows of a transformed tile add to the outputs (tile columns, tile rows * tiles * outputs).

        Args:
            padded: (rows, columns, inputs) float64, contiguous.
            half: Index of the half.
            rows: Its rows of B^T.
            grid: Numbers of tiles in a column and in a row.
        """
        a, _, b = _matrices(self._kernel)
        size, (down, across) = len(b), grid
        pitch, inputs = padded.shape[1] * padded.shape[2], padded.shape[2]
        bands = padded.as_strided((down, size, pitch), (_TILE * pitch, pitch, 1))
        by_rows = torch.matmul(b[rows], bands)  # (down, rows, pitch)
        count = by_rows.shape[1]
        strides = (inputs, pitch, count * pitch, _TILE * inputs, 1)
        columns = by_rows.as_strided((size, count, down, across, inputs), strides).reshape(size, -1)
        transformed = (b @ columns).view(size * count, down * across, inputs)
        products = torch.bmm(transformed, self._filters[half])
        gathered = (a @ products.view(size, -1)).view(_TILE, count, -1)
        return torch.matmul(a[:, rows], gathered)
