"""Photographs that the tests of task models share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture(scope="session")
def photos(shared: Path) -> list[NDArray[np.uint8]]:
    """Five COCO photographs in three shapes. Photographs of one shape do not follow each other, so batches must be put together."""
    files = sorted((shared / "data/coco/val2017").glob("*.jpg"))
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    selected = []
    for shape in [(480, 640), (426, 640), (427, 640), (480, 640), (426, 640)]:
        index = next(i for i, image in enumerate(images) if image.shape[:2] == shape)
        selected.append(images.pop(index))
    return selected
