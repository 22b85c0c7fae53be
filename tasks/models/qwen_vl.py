"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL through transformers: questions about images, answered in text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.batches import chunks, picture
from icmbench.tasks.models.coordinates import BoxConvention, smart_resize
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.pretrained import Pretrained

# How each generation was taught to write boxes; the next one's may differ again.
CONVENTIONS: dict[str, BoxConvention] = {
    "qwen2_vl": "norm1000",
    "qwen2_5_vl": "absolute_resized",
    "qwen3_vl": "norm1000",
    "qwen3_vl_moe": "norm1000",
}


class QwenVL(Pretrained):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL of transformers, decoding greedily.

    min_pixels, max_pixels: bounds of the resized image's area, None for the checkpoint's own.
    batch_size: prompts decoded together; padding and the batch's size move logits in their last bits, which can flip a token of
    an answer, so that only 1 makes an answer independent of its company. It is part of the fingerprint.
    """

    task: ClassVar[tuple[str, ...]] = ("referring", "openset_marked")
    auto = ("AutoModelForImageTextToText",)

    def __init__(
        self,
        checkpoint: str | None = None,
        path: Path | None = None,
        revision: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_tokens: int = 256,
        system: str | None = None,
        device: Device = "cpu",
        dtype: Dtype = "bfloat16",
        batch_size: int = 1,
    ) -> None:
        super().__init__(checkpoint, path, revision, device, dtype, batch_size)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.max_tokens, self.system = max_tokens, system

    @property
    def fingerprint(self) -> str:
        own = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels, "max_tokens": self.max_tokens, "system": self.system}
        return fingerprint(model="qwen-vl", **own, batch_size=self.batch_size, **self.facts())

    @property
    def box_convention(self) -> BoxConvention:
        """How this generation of the model writes boxes."""
        if self.config.model_type not in CONVENTIONS:
            known = ", ".join(CONVENTIONS)
            raise ModelError(f"{self.checkpoint.source}: a {self.config.model_type!r} checkpoint is no Qwen-VL; known: {known}")
        return CONVENTIONS[self.config.model_type]

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the image as the model sees it, where its boxes are `absolute_resized`."""
        size = self.processor.image_processor
        bounds = size.size["shortest_edge"], size.size["longest_edge"]
        return smart_resize(height, width, size.patch_size * size.merge_size, *bounds)

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        processor = self.checkpoint.load(AutoProcessor)
        bounds = dict(processor.image_processor.size)
        bounds |= {} if self.min_pixels is None else {"shortest_edge": self.min_pixels}
        bounds |= {} if self.max_pixels is None else {"longest_edge": self.max_pixels}
        processor.image_processor.size = bounds
        processor.tokenizer.padding_side = "left"  # answers go on from the right edge
        return processor

    def answer(self, images: Sequence[Image], prompts: Sequence[str]) -> list[str]:
        """One text for each image and prompt, in order."""
        pairs = list(zip(images, prompts, strict=True))
        return [text for some in chunks(pairs, self.batch_size) for text in self._answer(some)]

    def _answer(self, pairs: Sequence[tuple[Image, str]]) -> list[str]:
        import torch

        chats = [self._chat(image, prompt) for image, prompt in pairs]
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device, getattr(torch, self.dtype))
        with torch.inference_mode():
            written = self.network.generate(
                **inputs, max_new_tokens=self.max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        new = written[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _chat(self, image: Image, prompt: str) -> list[dict[str, Any]]:
        content = [{"type": "image", "image": picture(image)}, {"type": "text", "text": prompt}]
        first = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*first, {"role": "user", "content": content}]
