"""Image classifiers from the hub: ResNet, ConvNeXt, ViT, Swin and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import by_shape
from icmbench.tasks.models.pretrained import Pretrained


class TransformersClassifier(Pretrained):
    """Every image classifier of transformers, such as ResNet-50 and ConvNeXt-T.

    Images give logits float32 (n, classes) into `categories`, by the checkpoint's own preprocessing.
    """

    task: ClassVar[str] = "classification"
    auto = ("AutoModelForImageClassification",)

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-classification", **self.facts())

    def __call__(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        scores = by_shape(images, self.batch_size, self._classify)
        return np.stack(scores) if scores else np.zeros((0, self.config.num_labels), np.float32)

    def _classify(self, images: list[Image]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return self.network(**self.inputs(images)).logits.float().cpu().numpy()
