"""Networks on a fixed-point grid: the same bits on every processor, at any thread count, in any order of summation.

Activations are multiples of 2**-12 below 2**12. Weights are multiples of 2**-16, or of a larger step where a layer's weights are
large. Both are carried in float64. Every product and every partial sum of a convolution is then a multiple of 2**-28 below 2**25,
which is a whole number of units below 2**53, and float64 holds these exactly. The order of the sum, blocking and fused multiply-add
therefore do not matter, nor does the way by which an exact sum is found (`grid_winograd`). After each layer the sum is rounded to
the grid, ties to even.

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
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.base import CodecError
from icmbench.codecs.entropy import grid_winograd
from icmbench.codecs.entropy.exact import Chain, HalvedConv, Net, has_own_parameters, run_both, with_prepared_children
from icmbench.codecs.entropy.grid_winograd import GridWinograd

GRID = 12  # fractional bits of activations
WEIGHT = 16  # largest number of fractional bits of weights
LIMIT = 2.0**12  # Activations are clamped to +-LIMIT.
_REACH = 16  # Tables cover +-_REACH.
# Adding and subtracting this rounds an absolute value below 2**39 to the grid, ties to even: from 2**40 to 2**41, the grid's step
# is that of float64 itself. Two additions in place take less time than scaling, rounding and scaling back.
_ROUNDER = 1.5 * 2.0 ** (52 - GRID)

# Elementwise functions, and how they continue beyond their tables.
_TABLED: dict[type[nn.Module], tuple[Callable[[float], float], str]] = {
    nn.GELU: (lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)), "identity"),
    nn.SiLU: (lambda x: x / (1 + math.exp(-x)), "identity"),
    nn.Sigmoid: (lambda x: 1 / (1 + math.exp(-x)), "constant"),
    nn.Tanh: (math.tanh, "constant"),
}


_Layer: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_KEEPING = (nn.ReLU, nn.Identity, nn.PixelShuffle)  # They keep values on the grid and within +-LIMIT.


class Product(nn.Module):
    """The product a * b as a module, for gates in networks that need a grid form."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b: tensors of shapes that broadcast."""
        return a * b


def to_grid(x: Tensor) -> Tensor:
    """The nearest grid value of each element of x, of any shape and float type, as float64 within +-LIMIT."""
    return x.double().clamp(-LIMIT, LIMIT).add_(_ROUNDER).sub_(_ROUNDER)


def _largest(x: Tensor) -> float:
    """The largest absolute value of x; 0 if x is empty."""
    return max(float(x.amax()), -float(x.amin())) if x.numel() else 0.0


def _require_grid(x: Tensor) -> Tensor:
    """x within +-LIMIT. Raises CodecError if a value is off the grid."""
    if x.dtype != torch.float64 or not torch.equal((x + _ROUNDER).sub_(_ROUNDER), x):
        raise CodecError("a value left the integer grid between two layers; write the operation as a module with a grid form")
    return x.clamp(-LIMIT, LIMIT) if _largest(x) > LIMIT else x


def _grid_weights(weight: Tensor, per_output: tuple[int, ...]) -> tuple[Tensor, float]:
    """Weights rounded to the finest step, at most WEIGHT bits, at which every sum stays below 2**53 units; and this step.

    Raises CodecError if even whole numbers are too fine. `per_output` are the dimensions that one output sums over.
    """
    for bits in range(WEIGHT, -1, -1):
        rounded = (weight.double() * 2.0**bits).round()
        if rounded.abs().sum(per_output).max() * LIMIT * 2.0**GRID < 2.0**52:
            return rounded * 2.0**-bits, 2.0**-bits
    raise CodecError("weights of the entropy model are too large for the integer grid; they are damaged")


def _is_same_size(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution with odd kernels, whose outputs lie where its inputs do."""
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros":
        return False
    same = tuple(k // 2 for k in conv.kernel_size)
    return (conv.stride, conv.dilation, conv.padding) == ((1, 1), (1, 1), same) and all(k % 2 for k in conv.kernel_size)


class _ShiftedSum:
    """A same-size convolution as a sum over its taps of shifted rows times a matrix, without copies of the map.

    The padded map is read as one long list of positions, so that a tap is a shift of this list. Results at padded positions are
    cut off. Any order of the sum is exact here.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._kernel = conv.kernel_size
        self._taps = conv.weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous()

    @staticmethod
    def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a layer is a convolution that this class can compute."""
        return _is_same_size(conv) and conv.groups == 1 and max(conv.kernel_size) > 1

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
        return out.view(height, pitch, -1)[:, :width].permute(2, 0, 1)[None]


class _Pointwise:
    """A 1x1 convolution as a matrix product, half the output channels on each thread, so that each weight is read once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._halves = [half.contiguous() for half in conv.weight[:, :, 0, 0].T.chunk(2, 1)]

    @staticmethod
    def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a layer is a convolution that this class can compute."""
        if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or conv.out_channels < 2:
            return False
        return (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows = x[0].permute(1, 2, 0).reshape(height * width, -1)
        first, second = self._halves
        out = rows.new_empty(len(rows), first.shape[1] + second.shape[1])
        left, right = out.split([first.shape[1], second.shape[1]], 1)
        parallel = len(rows) * first.numel() > 1 << 22
        run_both(lambda: torch.mm(rows, first, out=left), lambda: torch.mm(rows, second, out=right), parallel)
        return out.view(height, width, -1).permute(2, 0, 1)[None]


class _Depthwise:
    """A same-size convolution of each channel by itself, as a sum over its taps of shifted maps."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._taps = conv.weight[:, 0].permute(1, 2, 0).contiguous()

    @staticmethod
    def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
        """Whether a layer is a convolution that this class can compute."""
        return _is_same_size(conv) and conv.groups == conv.in_channels == conv.out_channels

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = (k // 2 for k in self._taps.shape[:2])
        padded = F.pad(x[0].permute(1, 2, 0), (0, 0, right, right, down, down))
        out = x.new_zeros(height, width, x.shape[1])
        for i, row in enumerate(self._taps):
            for j, tap in enumerate(row):
                out.addcmul_(padded[i : i + height, j : j + width], tap)
        return out.permute(2, 0, 1)[None]


def _direct_sum(layer: _Layer) -> Net:
    """The sums of a layer without bias by their definition."""
    for kind in (_Pointwise, _Depthwise, _ShiftedSum):
        if kind.suits(layer):
            return kind(layer)
    return layer if isinstance(layer, nn.Linear) else HalvedConv(layer)


class _GridLayer:
    """A layer with weights on the grid.

    Args:
        layer: The layer, with its weights as they are now.
        rectified: Whether to set negative outputs to 0, as a ReLU after the layer would.
        trusting: Whether inputs are known to be on the grid and within +-LIMIT, so that they need no check.
    """

    def __init__(self, layer: _Layer, *, rectified: bool = False, trusting: bool = False) -> None:
        grid = copy.deepcopy(layer).cpu().double().requires_grad_(False)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        per_output = tuple(d for d in range(grid.weight.dim()) if d != int(transposed))
        grid.weight.data, step = _grid_weights(grid.weight.data, per_output)
        # Adding the rounder with the bias rounds once: both are on the grid, so their sum is exact.
        self._shift = torch.full((1,), _ROUNDER, dtype=torch.float64) if grid.bias is None else to_grid(grid.bias.data) + _ROUNDER
        if not isinstance(grid, nn.Linear):
            self._shift = self._shift[:, None, None]
        grid.bias = None
        self._floor, self._trusting, self._weight_step = 0.0 if rectified else -LIMIT, trusting, step
        self._direct = _direct_sum(grid)
        self._layer = grid if grid_winograd.suits(grid) else None

    @functools.cached_property
    def _fast(self) -> GridWinograd | None:
        """The fast form, if there is one. It is made for the first map that needs it, because its weights take more memory."""
        layer, self._layer = self._layer, None  # The direct sum keeps weights of its own.
        return None if layer is None else GridWinograd(layer, 2.0**-GRID, self._weight_step)

    def _sums(self, x: Tensor) -> Tensor:
        fast = self._fast if grid_winograd.is_large_enough(x) else None
        if fast is not None and fast.covers(largest := _largest(x)):
            return fast(x, largest)
        return self._direct(x)

    def __call__(self, x: Tensor) -> Tensor:
        sums = self._sums(x if self._trusting else _require_grid(x))
        return sums.add_(self._shift).sub_(_ROUNDER).clamp_(self._floor, LIMIT)


class _GridTable:
    """An elementwise function as a table of its values at all grid points within +-_REACH."""

    def __init__(self, function: Callable[[float], float], beyond: str) -> None:
        steps = _REACH << GRID
        self.values = to_grid(torch.tensor([function(i / (1 << GRID)) for i in range(-steps, steps + 1)], dtype=torch.float64))
        self._identity = beyond == "identity"

    def __call__(self, x: Tensor) -> Tensor:
        index = x.clamp(-_REACH, _REACH).add_(_REACH).mul_(2.0**GRID).int()
        # The new tensor is dense in some order of its dimensions. A flat list in this order is looked up three times as fast.
        flat = index.as_strided((index.numel(),), (1,))
        looked_up = self.values.index_select(0, flat).as_strided(index.shape, index.stride())
        return torch.where(x > _REACH, x, looked_up) if self._identity and _largest(x) > _REACH else looked_up


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

    def prepare(self, module: nn.Module, *, trusting: bool = False) -> Callable[..., Tensor]:
        """The grid form of a module, with its weights as they are now, as a function of one image's maps.

        The function takes and returns (1, C, H, W) float64 on the grid.

        Args:
            module: The module.
            trusting: Whether all inputs come from `admit` or from prepared layers, and need no check.

        Raises:
            CodecError: a layer of the module has no grid form, or its weights are too large for one.
        """
        if isinstance(module, _LAYERS):
            return _GridLayer(module, trusting=trusting)
        if isinstance(module, nn.Sequential):
            return Chain(self._prepare_chain(list(module), trusting))
        if isinstance(module, _KEEPING):
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

    def _prepare_chain(self, modules: list[nn.Module], trusting: bool) -> list[Net]:
        """The grid forms of modules that follow one another.

        A layer takes over the ReLU after it, and does not check what comes from another layer.
        """
        steps: list[Net] = []
        rectified = False
        for module, following in zip(modules, [*modules[1:], None]):
            if isinstance(module, nn.ReLU) and rectified:
                continue
            rectified = isinstance(module, _LAYERS) and isinstance(following, nn.ReLU)
            if isinstance(module, _LAYERS):
                step: Net = _GridLayer(module, rectified=rectified, trusting=trusting)
            else:
                step = self.prepare(module)
            trusting = isinstance(step, _GridLayer | _GridTable) or (trusting and isinstance(module, _KEEPING))
            steps.append(step)
        return steps

    def admit(self, x: Tensor) -> Tensor:
        """x within +-LIMIT. Raises CodecError if a value is off the grid."""
        return _require_grid(x)

    def snap(self, x: Tensor) -> Tensor:
        """The nearest grid values of x, as float64."""
        return to_grid(x)
