"""Image classifiers of transformers: ResNet, ConvNeXt, ViT, Swin and others."""

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

    Called on images it returns logits, float32 (n, classes), by index into `categories`. The preprocessing is the checkpoint's own.

    Args:
        checkpoint: hub name such as `microsoft/resnet-50`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
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
