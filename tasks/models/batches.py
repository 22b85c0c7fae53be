"""Batches of images of one shape: nothing is padded to a neighbour, so no result depends on the company an image is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import Image


def by_shape(images: Sequence[Image], size: int, run: Callable[[list[Image]], Iterable[Any]]) -> list[Any]:
    """`run` on batches of at most `size` images of equal shape; its results in the order of `images`."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        shapes.setdefault(image.shape, []).append(index)
    results: list[Any] = [None] * len(images)
    for indices in shapes.values():
        for some in chunks(indices, size):
            for index, result in zip(some, run([images[index] for index in some]), strict=True):
                results[index] = result
    return results


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def picture(image: Image) -> Pillow.Image:
    """As Pillow, which leaves no doubt about which axis holds the channels, however small the image."""
    return Pillow.fromarray(np.ascontiguousarray(image))


def unit_rows(features: Any) -> npt.NDArray[np.float32]:
    """A tensor's rows, scaled to unit length in float32."""
    features = features.float()
    return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()
