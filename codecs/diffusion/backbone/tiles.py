"""Large latents in overlapping tiles of one size, put together again with Gaussian weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Window: TypeAlias = tuple[slice, slice]
DEVIATION = 0.1  # of the weights, in sizes of a tile


class Tiles:
    """Tiles over a latent of height x width: squares of `tile` where a side is longer than that, else the whole side.

    Neighbours share at least `overlap` positions; the last tile of a row or column ends with it. tile = 0: one tile, the whole.
    Tensors may have a multiple or a fraction of the latent's resolution, as pixels do: `scale` says which.
    """

    def __init__(self, height: int, width: int, tile: int, overlap: int) -> None:
        self.size = (height, width)
        self.windows: list[Window] = [
            (rows, columns) for rows in _spans(height, tile, overlap) for columns in _spans(width, tile, overlap)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def cut(self, x: Tensor, scale: int = 1) -> list[Tensor]:
        """x (..., scale * height, scale * width) -> its tiles, in the order of `windows`."""
        return [x[(..., *_scaled(window, scale))] for window in self.windows]

    def paste(self, parts: Sequence[Tensor], scale: int = 1) -> Tensor:
        """The inverse of `cut`; where tiles overlap, their weighted mean."""
        if len(self) == 1:
            return parts[0]
        height, width = (scale * side for side in self.size)
        total = parts[0].new_zeros(height, width)
        whole = parts[0].new_zeros(*parts[0].shape[:-2], height, width)
        for part, window in zip(parts, self.windows):
            place = _scaled(window, scale)
            weight = (_bell(part.shape[-2])[:, None] * _bell(part.shape[-1])).to(part)
            total[place] += weight
            whole[(..., *place)] += weight * part
        return whole / total


def _spans(size: int, tile: int, overlap: int) -> list[slice]:
    if not 0 < tile < size:
        return [slice(0, size)]
    starts = [*range(0, size - tile, tile - overlap), size - tile]
    return [slice(start, start + tile) for start in starts]


def _scaled(window: Window, scale: int) -> Window:
    rows, columns = (slice(scale * span.start, scale * span.stop) for span in window)
    return rows, columns


def _bell(size: int) -> Tensor:
    place = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) / size
    return torch.exp(-(place**2) / (2 * DEVIATION**2))
