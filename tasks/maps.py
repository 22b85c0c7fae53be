"""Label maps, which give every pixel a class or a segment: stored as PNG, read from a dataset's files, painted for the report."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError, Image

LabelMap: TypeAlias = npt.NDArray[np.int64]  # (height, width)


def encode_map(labels: npt.NDArray[np.integer]) -> bytes:
    """A label map as a greyscale PNG of 8 or 16 bits; `read_map` reads it back.

    Args:
        labels: integers of 0..65535, (height, width).

    Raises:
        ValueError: the map has another shape or values outside this range.
    """
    if labels.ndim != 2 or (labels.size and (labels.min() < 0 or labels.max() > 0xFFFF)):
        raise ValueError(f"a label map is (height, width) of 0..65535, not {labels.shape}")
    narrow = labels.astype(np.uint8 if not labels.size or labels.max() <= 0xFF else np.uint16)
    buffer = io.BytesIO()
    Pillow.fromarray(narrow).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def read_map(source: Path | bytes) -> LabelMap:
    """The label map in a PNG.

    Args:
        source: a file, or the bytes of one.

    Returns:
        int64 (height, width): the samples of a greyscale PNG, the indices of a palette PNG, or R + 256 G + 65536 B of an RGB PNG,
        which is how COCO numbers segments. Alpha is left out.

    Raises:
        DatasetError: the file is missing, is no PNG or damaged, or is greyscale with alpha.
    """
    try:
        with Pillow.open(source if isinstance(source, Path) else io.BytesIO(source), formats=["PNG"]) as picture:
            samples = np.asarray(picture).astype(np.int64)
    except FileNotFoundError:
        raise DatasetError(f"{source!s}: no such label map; complete the annotation folder") from None
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{source!s:.200}: damaged or no PNG ({error}); download it again") from error
    if samples.ndim == 2:
        return samples
    if samples.shape[2] < 3:
        raise DatasetError(f"{source!s:.200}: a label map is greyscale, palette or RGB; convert it")
    return samples[..., 0] + 256 * samples[..., 1] + 65536 * samples[..., 2]


def relabel(segments: LabelMap, ids: npt.NDArray[np.int64], values: npt.NDArray[np.int64], default: int) -> LabelMap:
    """Replace each segment's id by a value.

    Args:
        segments: int64 (height, width), segment ids.
        ids: int64 (n,), distinct ids.
        values: int64 (n,), the value of each id.
        default: the value of pixels whose id is not among `ids`.

    Example:
        >>> relabel(np.array([[7, 7, 2], [0, 2, 2]]), ids=np.array([7, 2]), values=np.array([10, 20]), default=-1)
        array([[10, 10, 20],
               [-1, 20, 20]])
    """
    if not len(ids):
        return np.full(segments.shape, default)
    order = np.argsort(ids)
    position = np.minimum(np.searchsorted(ids[order], segments), len(ids) - 1)
    return np.where(ids[order][position] == segments, values[order][position], default)


def colour(index: int) -> tuple[int, int, int]:
    """An RGB colour for a class or segment; consecutive numbers get very different hues."""
    turns = index * 0.618033988749895 % 1.0  # The golden ratio spreads any number of hues evenly.
    angles = np.abs((turns * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    red, green, blue = (55 + 200 * np.clip(angles, 0, 1)).astype(int)
    return int(red), int(green), int(blue)


def paint(image: Image, labels: LabelMap, opacity: float = 0.55) -> Image:
    """The image under the colours of a label map.

    Args:
        image: uint8 (height, width, 3).
        labels: int64 (height, width); pixels of a negative label keep their colour.
        opacity: share of the colours, 0..1; the image has the remainder.
    """
    present, position = np.unique(labels, return_inverse=True)
    colours = np.array([colour(int(label)) for label in present], dtype=np.float64)
    mixed = image * (1 - opacity) + colours[position.reshape(labels.shape)] * opacity
    return np.where(labels[..., None] < 0, image, mixed.round().astype(np.uint8))
