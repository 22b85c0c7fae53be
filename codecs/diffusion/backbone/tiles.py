"""Large latents in overlapping tiles of one size, blended again with Gaussian weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Window: TypeAlias = tuple[slice, slice]
GAUSSIAN_STD = 0.1  # Of the blending weights, as a fraction of a tile's side.


class Tiles:
    """Overlapping tiles that cover a latent.

    A tile is a square. Where a side of the latent is not longer than `tile`, the tiles span that whole side instead. The last tile
    of a row or column ends where the latent ends, so its overlap may be larger. Tensors may have a multiple of the latent's
    resolution, as pixels do; the argument `scale` of the methods is that multiple.

    Args:
        height: Height of the latent in positions.
        width: Width of the latent in positions.
        tile: Side of a tile in positions; 0 for one tile that covers everything.
        overlap: Positions that neighbouring tiles share, at least; smaller than `tile`.

    Attributes:
        size: Height and width of the latent.
        windows: Rows and columns of each tile, row by row.
    """

    def __init__(self, height: int, width: int, tile: int, overlap: int) -> None:
        self.size = (height, width)
        self.windows: list[Window] = [
            (rows, columns) for rows in _spans(height, tile, overlap) for columns in _spans(width, tile, overlap)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def cut(self, x: Tensor, scale: int = 1) -> list[Tensor]:
        """Return the tiles of x (..., scale * height, scale * width), in the order of `windows`."""
        return [x[(..., *_scale_window(window, scale))] for window in self.windows]

    def paste(self, tiles: Sequence[Tensor], scale: int = 1) -> Tensor:
        """Invert `cut`: return (..., scale * height, scale * width), the weighted mean of the tiles where they overlap."""
        if len(self) == 1:
            return tiles[0]
        height, width = (scale * side for side in self.size)
        total_weight = tiles[0].new_zeros(height, width)
        weighted_sum = tiles[0].new_zeros(*tiles[0].shape[:-2], height, width)
        for tile, window in zip(tiles, self.windows):
            position = _scale_window(window, scale)
            weight = (_gaussian(tile.shape[-2])[:, None] * _gaussian(tile.shape[-1])).to(tile)
            total_weight[position] += weight
            weighted_sum[(..., *position)] += weight * tile
        return weighted_sum / total_weight


def _spans(size: int, tile: int, overlap: int) -> list[slice]:
    """The intervals of the tiles along one side."""
    if not 0 < tile < size:
        return [slice(0, size)]
    starts = [*range(0, size - tile, tile - overlap), size - tile]
    return [slice(start, start + tile) for start in starts]


def _scale_window(window: Window, scale: int) -> Window:
    rows, columns = (slice(scale * span.start, scale * span.stop) for span in window)
    return rows, columns


def _gaussian(size: int) -> Tensor:
    """Blending weights along one side, highest in the middle."""
    distance = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / size
    return torch.exp(-(distance**2) / (2 * GAUSSIAN_STD**2))
