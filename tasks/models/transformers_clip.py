"""Dual encoders of transformers for image-text retrieval: CLIP, SigLIP, SigLIP 2, MetaCLIP and others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import by_shape, chunks, unit_rows
from icmbench.tasks.models.pretrained import Pretrained


class TransformersClip(Pretrained):
    """CLIP, SigLIP and every other dual encoder of transformers.

    Images and texts are prepared by the checkpoint's own preprocessing and tokenizer. Texts longer than the text encoder's input
    are cut. SigLIP's texts are padded to 64 tokens, because it was trained on texts of this length.

    Args:
        checkpoint: hub name such as `openai/clip-vit-base-patch32`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of images or texts in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
    """

    task: ClassVar[str] = "retrieval"
    auto = ("AutoModelForZeroShotImageClassification",)

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-retrieval", **self.facts())

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        return self.checkpoint.load(AutoTokenizer)

    def embed_images(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        """Embed images, uint8 (height, width, 3) each, as float32 (n, d) with rows of unit length."""
        return _stack(by_shape(images, self.batch_size, self._embed_images))

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts as float32 (m, d) with rows of unit length."""
        return _stack([row for batch in chunks(texts, self.batch_size) for row in self._embed_texts(batch)])

    def _embed_images(self, images: list[Image]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return unit_rows(self.network.get_image_features(**self.inputs(images)).pooler_output)

    def _embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        import torch

        tokens = self.tokenizer(list(texts), return_tensors="pt", truncation=True, **self._padding)
        with torch.inference_mode():
            return unit_rows(self.network.get_text_features(**tokens.to(self.device)).pooler_output)

    @cached_property
    def _padding(self) -> dict[str, Any]:
        if "siglip" in self.config.model_type:
            return {"padding": "max_length", "max_length": 64}
        return {"padding": True, "max_length": self.config.text_config.max_position_embeddings}


def _stack(rows: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.stack(rows) if len(rows) else np.zeros((0, 0), np.float32)
