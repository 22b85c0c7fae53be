"""Object detectors of transformers: DETR and its successors, RT-DETR, RT-DETRv2, D-FINE, YOLOS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.pretrained import Pretrained

# COCO's names of the six categories that some checkpoints call by their Pascal VOC names, as Darknet's label files do.
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

    Called on images it returns one mapping per image: `boxes` float32 (n, 4) as x1, y1, x2, y2 in pixels of the image, `scores`
    float32 (n,) and `classes` int64 (n,) as indices into `categories`. The preprocessing and `post_process_object_detection` are
    the checkpoint's own.

    Args:
        checkpoint: hub name such as `PekingU/rtdetr_r50vd`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        score_threshold: boxes with this score or a lower one are dropped; from 0 to 1. 0, the default, keeps the box of every
            query, as in the published AP of these networks.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
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
        """Names by class index. If there are 80 as in COCO, names of Pascal VOC are replaced by COCO's."""
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
            detections = self.processor.post_process_object_detection(outputs, threshold=self.score_threshold, target_sizes=sizes)
        return [
            {
                "boxes": detection["boxes"].float().cpu().numpy(),
                "scores": detection["scores"].float().cpu().numpy(),
                "classes": detection["labels"].cpu().numpy().astype(np.int64),
            }
            for detection in detections
        ]
