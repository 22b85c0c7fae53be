"""Label maps: packed for Parquet, read from a dataset's PNG files, painted for the report.

A map gives every pixel a class or a segment. In a target it is a function that reads it, so that the maps of a whole dataset
need not be in memory at once.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from icmbench.tasks.base import DatasetError, Image
from icmbench.tasks.datasets.images import NATIVE, Preprocessing
from icmbench.tasks.geometry import centre_crop, resize_short

LabelMap: TypeAlias = npt.NDArray[np.int64]  # (height, width)
MapReader: TypeAlias = Callable[[], LabelMap]


def pack(labels: npt.NDArray[np.integer]) -> bytes:
    """A (height, width) map of 0..65535 as a greyscale PNG of 8 or 16 bits. Raises ValueError outside this range."""
    if labels.ndim != 2 or (labels.size and not (labels.min() >= 0 and labels.max() <= 0xFFFF)):
        raise ValueError(f"a label map is (height, width) of 0..65535, not {labels.shape}")
    narrow = labels.astype(np.uint8 if not labels.size or labels.max() <= 0xFF else np.uint16)
    buffer = io.BytesIO()
    Pillow.fromarray(narrow).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def unpack(data: bytes) -> LabelMap:
    """The (height, width) map behind `pack`."""
    with Pillow.open(io.BytesIO(data), formats=["PNG"]) as picture:
        return np.asarray(picture).astype(np.int64)


def read_labels(path: Path, preprocessing: Preprocessing = NATIVE) -> LabelMap:
    """The samples of a greyscale or palette PNG, in the geometry of the preprocessed image. Raises DatasetError."""
    samples = _read(path, preprocessing)
    if samples.ndim != 2:
        raise DatasetError(f"{path}: a label map has one channel, this has {samples.shape[2]}; give the maps of class indices")
    return samples


def read_segments(path: Path, preprocessing: Preprocessing = NATIVE) -> LabelMap:
    """Segment ids R + 256 G + 65536 B of a panoptic PNG in COCO's format. Raises DatasetError."""
    samples = _read(path, preprocessing)
    if samples.ndim != 3 or samples.shape[2] < 3:
        raise DatasetError(f"{path}: a panoptic map is an RGB PNG; give the maps that hold R + 256 G + 65536 B")
    return samples[..., 0] + 256 * samples[..., 1] + 65536 * samples[..., 2]


def _read(path: Path, preprocessing: Preprocessing) -> LabelMap:
    try:
        with Pillow.open(path) as picture:
            return np.asarray(_nearest(picture, preprocessing)).astype(np.int64)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such label map; complete the annotation folder") from None
    except (OSError, SyntaxError) as error:
        raise DatasetError(f"{path}: damaged or no PNG ({error}); download it again") from error


def _nearest(picture: Pillow.Image, preprocessing: Preprocessing) -> Pillow.Image:
    """The preprocessing's geometry without mixing labels."""
    for name, size in preprocessing.steps:
        if name == "resize":
            picture = picture.resize((size[0], size[1]), Pillow.Resampling.NEAREST)
        elif name == "short":
            picture = resize_short(picture, size[0], Pillow.Resampling.NEAREST)
        else:
            picture = centre_crop(picture, size[0], size[1])
    return picture


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
