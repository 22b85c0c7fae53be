"""Label maps: packed for Parquet, read from a dataset's PNG files, painted for the report.

A map gives every pixel a class or a segment.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError, Image

LabelMap: TypeAlias = npt.NDArray[np.int64]  # (height, width)


def pack(labels: npt.NDArray[np.integer]) -> bytes:
    """A (height, width) map of 0..65535 as a greyscale PNG of 8 or 16 bits. Raises ValueError outside this range."""
    if labels.ndim != 2 or (labels.size and (labels.min() < 0 or labels.max() > 0xFFFF)):
        raise ValueError(f"a label map is (height, width) of 0..65535, not {labels.shape}")
    narrow = labels.astype(np.uint8 if not labels.size or labels.max() <= 0xFF else np.uint16)
    buffer = io.BytesIO()
    Pillow.fromarray(narrow).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def read_map(source: Path | bytes) -> LabelMap:
    """The map behind `pack`, or in a PNG file: its samples, or R + 256 G + 65536 B of an RGB file, as COCO numbers segments.

    A palette's indices are the samples, and alpha is left out. Raises DatasetError.
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


def relabel(segments: LabelMap, ids: npt.NDArray[np.int64], values: npt.NDArray[np.int64], rest: int) -> LabelMap:
    """The value of each pixel's segment; `rest` where its id is not among `ids`, which are distinct and aligned with `values`."""
    if not len(ids):
        return np.full(segments.shape, rest)
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], segments), len(ids) - 1)
    return np.where(ids[order][place] == segments, values[order][place], rest)


def colour(index: int) -> tuple[int, int, int]:
    """A colour for a class or segment; neighbours in number are far apart in hue."""
    turns = index * 0.618033988749895 % 1.0  # the golden ratio spreads any number of hues evenly
    angles = np.abs((turns * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    red, green, blue = (55 + 200 * np.clip(angles, 0, 1)).astype(int)
    return int(red), int(green), int(blue)


def paint(image: Image, labels: LabelMap, opacity: float = 0.55) -> Image:
    """The image under the colours of a map of the same height and width; negative labels stay clear."""
    present, position = np.unique(labels, return_inverse=True)
    table = np.array([colour(int(label)) for label in present], dtype=np.float64)
    mixed = image * (1 - opacity) + table[position.reshape(labels.shape)] * opacity
    return np.where(labels[..., None] < 0, image, mixed.round().astype(np.uint8))
