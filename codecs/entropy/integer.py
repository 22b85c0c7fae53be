"""Networks on a fixed-point grid: the same bits on every processor, at any thread count, in any order of summation.

Activations are multiples of 2**-12 below 2**12. Weights are multiples of 2**-16, or of a larger step where a layer's weights are
large. Both are carried in float64. Every product and every partial sum of a convolution is then a multiple of 2**-28 below 2**25,
which is a whole number of units below 2**53, and float64 holds these exactly. The order of the sum, blocking and fused multiply-add
therefore do not matter. After each layer the sum is rounded to the grid, ties to even.

Elementwise functions are looked up in a table of their 2**17 + 1 values between -16 and 16, and continue beyond as a constant or as
the identity. Between layers, only sums, concatenations and reorderings of grid values are allowed. `Product` and nn.LayerNorm have
grid forms of their own. A value off the grid is refused where it enters the next layer.

Source: Ballé, Johnston and Minnen, "Integer Networks for Data Compression with Latent-Variable Models", ICLR 2019. Unlike theirs,
this arithmetic is carried in float64 and needs no retraining.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.base import CodecError
from icmbench.codecs.entropy.exact import Chain, HalvedConv, Net, has_own_parameters, run_both, with_prepared_children

GRID = 12  # fractional bits of activations
WEIGHT = 16  # largest number of fractional bits of weights
LIMIT = 2.0**12  # Activations are clamped to +-LIMIT.
_REACH = 16  # Tables cover +-_REACH.

# Elementwise functions, and how they continue beyond their tables.
_TABLED: dict[type[nn.Module], tuple[Callable[[float], float], str]] = {
    nn.GELU: (lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)), "identity"),
    nn.SiLU: (lambda x: x / (1 + math.exp(-x)), "identity"),
    nn.Sigmoid: (lambda x: 1 / (1 + math.exp(-x)), "constant"),
    nn.Tanh: (math.tanh, "constant"),
}


class Product(nn.Module):
    """The product a * b as a module, for gates in networks that need a grid form."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: tensors of shapes that broadcast."""
        return a * b


def to_grid(x: Tensor) -> Tensor:
    """The nearest grid value of each element of x, of any shape and float type, as float64 within +-LIMIT."""
    return (x.double() * 2.0**GRID).round_().mul_(2.0**-GRID).clamp_(-LIMIT, LIMIT)


def _require_grid(x: Tensor) -> Tensor:
    """x within +-LIMIT. Raises CodecError if a value is off the grid."""
    scaled = x * 2.0**GRID
    if x.dtype != torch.float64 or not torch.equal(scaled, scaled.round()):
        raise CodecError("a value left the integer grid between two layers; write the operation as a module with a grid form")
    return x.clamp(-LIMIT, LIMIT)


def _grid_weights(weight: Tensor, per_output: tuple[int, ...]) -> Tensor:
    """Weights rounded to the finest step, at most WEIGHT bits, at which every sum stays below 2**53 units.

    Raises CodecError if even whole numbers are too fine. `per_output` are the dimensions that one output sums over.
    """
    for bits in range(WEIGHT, -1, -1):
        rounded = (weight.double() * 2.0**bits).round()
        if rounded.abs().sum(per_output).max() * LIMIT * 2.0**GRID < 2.0**52:
            return rounded * 2.0**-bits
    raise CodecError("weights of the entropy model are too large for the integer grid; they are damaged")


class _ShiftedSum:
    """A same-size convolution as a sum over its taps of shifted rows times a matrix, without copies of the map.

    The padded map is read as one long list of positions, so that a tap is a shift of this list. Results at padded positions are
    cut off. Any order of the sum is exact here.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._kernel, self._bias = conv.kernel_size, conv.bias
        self._taps = conv.weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()

    @staticmethod
    def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a layer is a convolution that this class can compute."""
        if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or max(conv.kernel_size) == 1 or conv.padding_mode != "zeros":
            return False
        same = tuple(k // 2 for k in conv.kernel_size)
        return (conv.stride, conv.dilation, conv.padding) == ((1, 1), (1, 1), same) and all(k % 2 for k in conv.kernel_size)

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = (k // 2 for k in self._kernel)
        pitch = width + 2 * right
        rows = F.pad(x[0].permute(1, 2, 0), (0, 0, right, right, down, down + 1)).flatten(0, 1)
        out = torch.zeros(height * pitch, self._taps.shape[2], dtype=x.dtype)
        middle = len(out) // 2

        def add(start: int, stop: int) -> None:
            for index, tap in enumerate(self._taps):
                shift = index // self._kernel[1] * pitch + index % self._kernel[1]
                out[start:stop].addmm_(rows[start + shift : stop + shift], tap)

        parallel = out.numel() * self._taps[0].numel() > 1 << 22
        run_both(lambda: add(0, middle), lambda: add(middle, len(out)), parallel)
        out = out if self._bias is None else out.add_(self._bias)
        return out.view(height, pitch, -1)[:, :width].permute(2, 0, 1)[None]


class _GridLayer:
    """A layer with weights on the grid."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
        grid = copy.deepcopy(layer).cpu().double().requires_grad_(False)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        grid.weight.data = _grid_weights(grid.weight.data, tuple(d for d in range(grid.weight.dim()) if d != int(transposed)))
        if grid.bias is not None:
            grid.bias.data = to_grid(grid.bias.data)
        self._apply: Net = grid
        if not isinstance(grid, nn.Linear):
            self._apply = _ShiftedSum(grid) if _ShiftedSum.suits(grid) else HalvedConv(grid)

    def __call__(self, x: Tensor) -> Tensor:
        return to_grid(self._apply(_require_grid(x)))


class _GridTable:
    """An elementwise function as a table of its values at all grid points within +-_REACH."""

    def __init__(self, function: Callable[[float], float], beyond: str) -> None:
        steps = _REACH << GRID
        self.values = to_grid(torch.tensor([function(i / (1 << GRID)) for i in range(-steps, steps + 1)], dtype=torch.float64))
        self._identity = beyond == "identity"

    def __call__(self, x: Tensor) -> Tensor:
        inside = x.clamp(-_REACH, _REACH)
        looked_up = self.values[((inside + _REACH) * 2.0**GRID).long()]
        return torch.where(x > _REACH, x, looked_up) if self._identity else looked_up


@functools.cache
def _table(function: Callable[[float], float], beyond: str) -> _GridTable:
    return _GridTable(function, beyond)


class _GridNorm:
    """LayerNorm over the last dimension. Sums are int64; divisions, roots and products are single, correctly rounded operations."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        if len(norm.normalized_shape) != 1 or norm.weight is None:
            raise CodecError(f"{norm} has no grid form; normalise over the last dimension, with weights")
        self._weight, self._bias, self._epsilon = to_grid(norm.weight.detach()), to_grid(norm.bias.detach()), norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        units = (x.clamp(-LIMIT, LIMIT) * 2.0**GRID).long()
        mean = units.sum(-1, keepdim=True).double() / n
        difference = (units.double() - mean).round()
        variance = difference.long().square().sum(-1, keepdim=True).double() / n * 4.0**-GRID
        return to_grid(to_grid(difference * 2.0**-GRID / (variance + self._epsilon).sqrt()) * self._weight + self._bias)


def _leaky_relu(slope: float) -> Net:
    slope = round(slope * 2**WEIGHT) / 2**WEIGHT
    return lambda x: torch.where(x < 0, to_grid(x * slope), x)


class FixedPoint:
    """The portable arithmetic, which runs the networks on the grid. It is bit-exact on every processor."""

    name = "portable"
    dtype = torch.float64

    def prepare(self, module: nn.Module) -> Callable[..., Tensor]:
        """The grid form of a module, with its weights as they are now, as a function of one image's maps.

        The function takes and returns (1, C, H, W) float64 on the grid.

        Raises:
            CodecError: a layer of the module has no grid form, or its weights are too large for one.
        """
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            return _GridLayer(module)
        if isinstance(module, nn.Sequential):
            return Chain([self.prepare(child) for child in module])
        if isinstance(module, nn.ReLU | nn.Identity | nn.PixelShuffle):
            return module
        if isinstance(module, nn.LeakyReLU):
            return _leaky_relu(module.negative_slope)
        if isinstance(module, nn.LayerNorm):
            return _GridNorm(module)
        if isinstance(module, Product):
            return lambda a, b: to_grid(_require_grid(a) * _require_grid(b))
        if type(module) in _TABLED and getattr(module, "approximate", "none") == "none":
            return _table(*_TABLED[type(module)])
        if has_own_parameters(module) or not module._modules:
            raise CodecError(f"{type(module).__name__} has no integer form; use mode: default or one of the layers that have one")
        return with_prepared_children(module, self.prepare)

    def snap(self, x: Tensor) -> Tensor:
        """The nearest grid values of x, as float64."""
        return to_grid(x)
