"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL of transformers: multimodal models that answer prompts about images in text."""

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

# How each generation was trained to write boxes, by the `model_type` of its configuration. Other generations are refused, because
# their convention may differ.
CONVENTIONS: dict[str, BoxConvention] = {
    "qwen2_vl": "norm1000",
    "qwen2_5_vl": "absolute_resized",
    "qwen3_vl": "norm1000",
    "qwen3_vl_moe": "norm1000",
}


class QwenVL(Pretrained):
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL of transformers, decoding greedily.

    Args:
        checkpoint: hub name such as `org/model`; leave out if `path` is given.
        path: folder as `save_pretrained` writes it; leave out if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; the main branch by default.
        min_pixels: smallest area of the resized image, in pixels; the checkpoint's own by default.
        max_pixels: largest area of the resized image, in pixels; the checkpoint's own by default.
        max_tokens: largest number of tokens in an answer.
        system: text of the system message; none by default.
        device: where the network runs.
        dtype: type of weights and activations, to which the checkpoint is converted; part of the fingerprint.
        batch_size: largest number of prompts that are answered together; part of the fingerprint. Padding and batch size change
            logits in their last bits, which may change a token of an answer. Only with 1, the default, are answers independent of
            each other.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
        ModuleNotFoundError: torch, torchvision or transformers is not installed.
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
        return fingerprint(
            model="qwen-vl",
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            max_tokens=self.max_tokens,
            system=self.system,
            batch_size=self.batch_size,
            **self.facts(),
        )

    @property
    def box_convention(self) -> BoxConvention:
        """How this generation of the model writes boxes.

        Raises:
            ModelError: the checkpoint is of none of the generations in CONVENTIONS.
        """
        if self.config.model_type not in CONVENTIONS:
            generations = ", ".join(CONVENTIONS)
            raise ModelError(
                f"{self.checkpoint.source}: a {self.config.model_type!r} checkpoint is no Qwen-VL; known: {generations}"
            )
        return CONVENTIONS[self.config.model_type]

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels to which the model resizes an image, for boxes that are `absolute_resized`."""
        image_processor = self.processor.image_processor
        factor = image_processor.patch_size * image_processor.merge_size
        # transformers keeps the bounds of the area under these names.
        min_pixels, max_pixels = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
        return smart_resize(height, width, factor, min_pixels, max_pixels)

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's preprocessing of images and texts, with `min_pixels` and `max_pixels` where they are given."""
        from transformers import AutoProcessor

        processor = self.checkpoint.load(AutoProcessor)
        bounds = dict(processor.image_processor.size)
        bounds |= {} if self.min_pixels is None else {"shortest_edge": self.min_pixels}
        bounds |= {} if self.max_pixels is None else {"longest_edge": self.max_pixels}
        processor.image_processor.size = bounds
        processor.tokenizer.padding_side = "left"  # An answer continues its prompt at the right end.
        return processor

    def answer(self, images: Sequence[Image], prompts: Sequence[str]) -> list[str]:
        """Answer each prompt about its image.

        Args:
            images: uint8 (height, width, 3) each.
            prompts: one per image.

        Returns:
            One text per pair, in order.
        """
        pairs = list(zip(images, prompts, strict=True))
        return [text for batch in chunks(pairs, self.batch_size) for text in self._answer(batch)]

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
            tokens = self.network.generate(
                **inputs, max_new_tokens=self.max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
            )
        answer_tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.batch_decode(answer_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _chat(self, image: Image, prompt: str) -> list[dict[str, Any]]:
        content = [{"type": "image", "image": picture(image)}, {"type": "text", "text": prompt}]
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return [*system, {"role": "user", "content": content}]
