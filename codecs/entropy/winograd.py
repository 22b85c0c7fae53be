"""5x5 convolutions by Winograd's minimal filtering, in float32: 64 multiplications where the definition takes 400.

An output tile of 4x4 is A^T [(G w G^T) * (B^T x B)] A, where w are the weights and x the 8x8 inputs of the tile. Rounding errors
are about five times those of the direct sum. This does not matter for a mean or a scale; what matters for coding is that the order
of sums is fixed.

Source: F(4x4, 5x5) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, with the interpolation points
0, +-1, +-2, +-1/2 and infinity.
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


def minimal_filtering(tile: int, kernel: int) -> tuple[list[list[Fraction]], list[list[Fraction]], list[list[Fraction]]]:
    """The matrices A^T (tile, n), G (n, kernel) and B^T (n, n) in one dimension, where n = tile + kernel - 1 is at most 8.

    Args:
        tile: Outputs of a tile.
        kernel: Taps of the filter.
    """
    points = _POINTS[: tile + kernel - 2]

    def times_root(polynomial: list[Fraction], root: Fraction) -> list[Fraction]:
        return [a - root * b for a, b in zip([Fraction(0), *polynomial], [*polynomial, Fraction(0)])]

    filters, inputs = [], []
    for i, point in enumerate(points):
        other_points = points[:i] + points[i + 1 :]
        inputs.append([*functools.reduce(times_root, other_points, [Fraction(1)]), Fraction(0)])
        norm = functools.reduce(lambda product, other: product * (point - other), other_points, Fraction(1))
        filters.append([point**k / norm for k in range(kernel)])
    inputs.append(functools.reduce(times_root, points, [Fraction(1)]))
    filters.append([Fraction(int(k == kernel - 1)) for k in range(kernel)])
    gather = [[*(point**j for point in points), Fraction(int(j == tile - 1))] for j in range(tile)]
    return gather, filters, inputs


@functools.cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """A^T (16, 64), G (8, 5) and B^T (64, 64), float64. A^T and B^T act on both axes of a flattened tile at once."""
    matrices = minimal_filtering(_TILE, _KERNEL)
    a, g, b = (torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64) for rows in matrices)
    return torch.kron(a, a), g, torch.kron(b, b)


def suits(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that this module can compute, and large enough to become faster by it."""
    return (
        isinstance(conv, nn.Conv2d)
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((5, 5), (1, 1), (2, 2), (1, 1))
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= 16
        and conv.in_channels * conv.out_channels >= 3000
    )


class WinogradWeights:
    """The transformed filters of a convolution, cut into blocks of input channels and of output channels.

    Args:
        conv: A layer that `suits`, with its weights as they are now.
        blocks: Number of blocks of input channels, and of blocks of output channels.

    Attributes:
        blocks: Filters (64, inputs, outputs) float32 of each block, as a list per block of inputs.
        biases: (outputs,) float32 of each block of outputs.
    """

    def __init__(self, conv: nn.Conv2d, blocks: int) -> None:
        _, g, _ = _matrices()
        filters = torch.einsum("ik,ockl,jl->ijco", g, conv.weight.detach().double(), g).flatten(0, 1).float()
        self.blocks = [[block.contiguous() for block in rows.chunk(blocks, 2)] for rows in filters.chunk(blocks, 1)]
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.biases = [block.contiguous() for block in bias.chunk(blocks)]


def transform_inputs(x: Tensor) -> Tensor:
    """The transformed inputs of every tile.

    Args:
        x: (1, C, H, W) float32, channels-last.

    Returns:
        (64, tiles, C) float32.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x[0].permute(1, 2, 0), (0, 0, 2, -width % _TILE + 2, 2, -height % _TILE + 2)).contiguous()
    down, right, _ = padded.stride()
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    shape = (_SIZE, _SIZE, rows, columns, x.shape[1])
    tiles = padded.as_strided(shape, (down, right, _TILE * down, _TILE * right, 1)).reshape(_SIZE**2, -1)
    return (_matrices()[2].float() @ tiles).view(_SIZE**2, rows * columns, -1)


def compute_outputs(transformed: list[Tensor], weights: WinogradWeights, block: int, height: int, width: int) -> Tensor:
    """One block of the output channels.

    Args:
        transformed: (64, tiles, C) float32 from `transform_inputs`, for each block of input channels.
        weights: The transformed filters.
        block: Index of the block of output channels.
        height: Height of the map.
        width: Width of the map.

    Returns:
        (1, outputs of the block, height, width) float32.
    """
    products = torch.bmm(transformed[0], weights.blocks[0][block])
    for inputs, filters in zip(transformed[1:], weights.blocks[1:]):
        products.baddbmm_(inputs, filters[block])
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    tiles = (_matrices()[0].float() @ products.view(_SIZE**2, -1)).view(_TILE, _TILE, rows, columns, -1)
    full = tiles.permute(2, 0, 3, 1, 4).reshape(_TILE * rows, _TILE * columns, -1)
    return (full[:height, :width] + weights.biases[block]).permute(2, 0, 1)[None]
