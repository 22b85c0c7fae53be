"""Real photographs for the task models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@pytest.fixture(scope="session")
def photos(shared: Path) -> list[NDArray[np.uint8]]:
    """Five COCO photographs in three shapes, equal shapes apart: 480x640, 426x640, 427x640 and again the first two."""
    files = sorted((shared / "data/coco/val2017").glob("*.jpg"))
    wanted = [(480, 640), (426, 640), (427, 640), (480, 640), (426, 640)]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    found = []
    for shape in wanted:
        index = next(i for i, image in enumerate(images) if image.shape[:2] == shape)
        found.append(images.pop(index))
    return found
