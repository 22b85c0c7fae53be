"""Detection transformers from the hub: DETR and its kin, RT-DETR, RT-DETRv2, D-FINE, YOLOS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.pretrained import Pretrained

# Checkpoints converted from Darknet-style label files call six COCO categories by their Pascal VOC names.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


class TransformersDetector(Pretrained):
    """DETR, RT-DETR, RT-DETRv2, D-FINE and every other box detector of transformers.

    Each image gives `boxes` float32 (n, 4) as x1, y1, x2, y2 in its pixels, `scores` float32 (n,), `classes` int64 (n,) into
    `categories`, by the checkpoint's own preprocessing and `post_process_object_detection`.

    score_threshold: boxes at or below are dropped; 0 keeps every query, as COCO's AP of these networks is published.
    """

    task: ClassVar[str] = "detection"
    auto = ("AutoModelForObjectDetection",)

    def __init__(
        self,
        checkpoint: str | None = None,
        path: Path | None = None,
        revision: str | None = None,
        score_threshold: float = 0.0,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 4,
    ) -> None:
        super().__init__(checkpoint, path, revision, device, dtype, batch_size)
        self.score_threshold = score_threshold

    @property
    def categories(self) -> list[str]:
        names = super().categories
        return [COCO_NAMES.get(name, name) for name in names] if len(names) == 80 else names

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-detection", score_threshold=self.score_threshold, **self.facts())

    def __call__(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        return by_shape(images, self.batch_size, self._detect)

    def _detect(self, images: list[Image]) -> list[dict[str, Any]]:
        import torch

        with torch.inference_mode():
            outputs = self.network(**self.inputs(images))
            sizes = [image.shape[:2] for image in images]
            found = self.processor.post_process_object_detection(outputs, threshold=self.score_threshold, target_sizes=sizes)
        return [
            {
                "boxes": one["boxes"].float().cpu().numpy(),
                "scores": one["scores"].float().cpu().numpy(),
                "classes": one["labels"].cpu().numpy().astype(np.int64),
            }
            for one in found
        ]
