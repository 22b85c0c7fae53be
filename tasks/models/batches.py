"""Batches of images of one shape. No image is padded to the size of another, so no result depends on the rest of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import Image


def by_shape(images: Sequence[Image], size: int, run: Callable[[list[Image]], Iterable[Any]]) -> list[Any]:
    """Call a model on batches of images of equal shape.

    Args:
        images: uint8 (height, width, 3) each; shapes may differ.
        size: largest number of images in a batch.
        run: the model; it is called with one batch at a time and returns one result per image, in order.

    Returns:
        The results in the order of `images`.
    """
    indices_by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        indices_by_shape.setdefault(image.shape, []).append(index)
    results: list[Any] = [None] * len(images)
    for indices in indices_by_shape.values():
        for batch in chunks(indices, size):
            for index, result in zip(batch, run([images[index] for index in batch]), strict=True):
                results[index] = result
    return results


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def picture(image: Image) -> Pillow.Image:
    """A uint8 array (height, width, 3) as a Pillow picture.

    Preprocessing libraries have to guess which axis of an array holds the channels, and are wrong for very small images.
    """
    return Pillow.fromarray(np.ascontiguousarray(image))


def unit_rows(features: Any) -> npt.NDArray[np.float32]:
    """Scale rows to unit length.

    Args:
        features: tensor (n, d) of any floating-point type, on any device.

    Returns:
        float32 (n, d).
    """
    features = features.float()
    return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()
