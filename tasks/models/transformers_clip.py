"""Dual encoders from the hub: CLIP, SigLIP, SigLIP 2, MetaCLIP and others, for image-text retrieval."""

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

    `embed_images` gives float32 (n, d), `embed_texts` float32 (m, d), rows of unit length, by the checkpoint's own preprocessing
    and tokenizer. SigLIP's texts are padded to 64 tokens, as it was trained; longer texts are cut to what the text tower takes.
    """

    task: ClassVar[str] = "retrieval"
    auto = ("AutoModelForZeroShotImageClassification",)

    @property
    def fingerprint(self) -> str:
        return fingerprint(model="transformers-retrieval", **self.facts())

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self.checkpoint.load(AutoTokenizer)

    def embed_images(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        return _stacked(by_shape(images, self.batch_size, self._embed_images))

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return _stacked([row for some in chunks(texts, self.batch_size) for row in self._embed_texts(some)])

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


def _stacked(rows: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.stack(rows) if len(rows) else np.zeros((0, 0), np.float32)
