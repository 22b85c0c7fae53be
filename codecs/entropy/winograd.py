"""5x5 convolutions by Winograd's minimal filtering, in float32: 64 multiplications where the definition takes 400.

F(4x4, 5x5) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), with the points 0, +-1, +-2, +-1/2
and infinity. An output tile of 4x4 is A^T [(G w G^T) * (B^T x B)] A, x the 8x8 inputs under it. Rounding errors are about five
times those of the direct sum, which a mean or a scale does not notice; what counts for coding is that the order of sums is fixed.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TILE, _KERNEL = 4, 5
_SIZE = _TILE + _KERNEL - 1
_POINTS = [Fraction(p) for p in (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2))]


@functools.cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (16, 64), G (8, 5) and B^T (64, 64), float64; A and B act on both axes at once."""

    def times_root(polynomial: list[Fraction], root: Fraction) -> list[Fraction]:
        return [a - root * b for a, b in zip([Fraction(0), *polynomial], [*polynomial, Fraction(0)])]

    gather, filters, inputs = [], [], []
    for i, point in enumerate(_POINTS):
        others = _POINTS[:i] + _POINTS[i + 1 :]
        inputs.append([*functools.reduce(times_root, others, [Fraction(1)]), Fraction(0)])
        norm = functools.reduce(lambda product, other: product * (point - other), others, Fraction(1))
        filters.append([point**k / norm for k in range(_KERNEL)])
    inputs.append(functools.reduce(times_root, _POINTS, [Fraction(1)]))
    filters.append([Fraction(int(k == _KERNEL - 1)) for k in range(_KERNEL)])
    gather = [[*(point**j for point in _POINTS), Fraction(int(j == _TILE - 1))] for j in range(_TILE)]
    a, g, b = (torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64) for rows in (gather, filters, inputs))
    return torch.kron(a, a), g, torch.kron(b, b)


def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that this computes, and large enough to gain by it."""
    return (
        isinstance(conv, nn.Conv2d)
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((5, 5), (1, 1), (2, 2), (1, 1))
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= 16
        and conv.in_channels * conv.out_channels >= 3000
    )


class WinogradWeights:
    """The transformed filters of a convolution, cut in blocks: inputs (rows) and outputs (columns) in as many parts as given."""

    def __init__(self, conv: nn.Conv2d, parts: int) -> None:
        _, g, _ = _matrices()
        filters = torch.einsum("ik,ockl,jl->ijco", g, conv.weight.detach().double(), g).flatten(0, 1).float()
        self.blocks = [[block.contiguous() for block in rows.chunk(parts, 2)] for rows in filters.chunk(parts, 1)]
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.biases = [part.contiguous() for part in bias.chunk(parts)]


def transform(x: Tensor) -> Tensor:
    """Inputs of every tile (64, tiles, C) of a channels-last map (1, C, H, W)."""
    height, width = x.shape[-2:]
    padded = F.pad(x[0].permute(1, 2, 0), (0, 0, 2, -width % _TILE + 2, 2, -height % _TILE + 2)).contiguous()
    down, right, _ = padded.stride()
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    shape = (_SIZE, _SIZE, rows, columns, x.shape[1])
    tiles = padded.as_strided(shape, (down, right, _TILE * down, _TILE * right, 1)).reshape(_SIZE**2, -1)
    return (_matrices()[2].float() @ tiles).view(_SIZE**2, rows * columns, -1)


def multiply(transformed: list[Tensor], weights: WinogradWeights, part: int, height: int, width: int) -> Tensor:
    """One part of the output channels (1, C, height, width), from the parts of the transformed inputs."""
    products = torch.bmm(transformed[0], weights.blocks[0][part])
    for block, filters in zip(transformed[1:], weights.blocks[1:]):
        products.baddbmm_(block, filters[part])
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    tiles = (_matrices()[0].float() @ products.view(_SIZE**2, -1)).view(_TILE, _TILE, rows, columns, -1)
    full = tiles.permute(2, 0, 3, 1, 4).reshape(_TILE * rows, _TILE * columns, -1)
    return (full[:height, :width] + weights.biases[part]).permute(2, 0, 1)[None]
