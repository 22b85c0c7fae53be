"""BEiT-3 (Wang et al. 2022) for image-text retrieval, as a plug-in: an adapter, a network and an entry point, outside of icmbench.

    image -> 16x16 patches ---\\                                                  /-> [CLS] -> vision_head ---> unit vector
                               >-> multiway transformer: attention, norms and FFN >
    caption -> 64 tokens ------/   have an expert A for vision and B for language \\-> <s> ---> language_head -> unit vector

The network's parameters have the names of the released retrieval checkpoints, such as
`beit3_base_patch16_384_f30k_retrieval.pth`.
"""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image as Pillow

from icmbench.tasks.base import Image, file_sha256, fingerprint


class Beit3Retrieval:
    """BEiT-3 image-text retrieval, from a released checkpoint and a `tokenizers` file of its vocabulary.

    Args:
        path: checkpoint, a .pth file.
        tokenizer: the SentencePiece vocabulary as a file of the package `tokenizers`.
        heads: number of attention heads. By default one per 64 channels, as in the released sizes.
        device: where the network runs.
        batch_size: largest number of images or texts in a forward pass. It changes results by rounding only.
    """

    task = "retrieval"
    weights = "a released BEiT-3 retrieval checkpoint (MIT) as `path`, its SentencePiece vocabulary as `tokenizer`"

    def __init__(
        self, path: Path, tokenizer: Path, heads: int | None = None, device: Literal["cpu", "cuda"] = "cpu", batch_size: int = 32
    ) -> None:
        self.path, self.vocabulary, self.heads, self.device, self.batch_size = path, tokenizer, heads, device, batch_size

    @property
    def fingerprint(self) -> str:
        """Everything that decides an embedding."""
        files = [file_sha256(self.path), file_sha256(self.vocabulary)]
        return fingerprint(model="beit3", version=1, files=files, heads=self.heads, torch=version("torch"))

    @cached_property
    def network(self):
        """The network with its weights, loaded when first used."""
        import torch
        from beit3_network import Beit3

        state = torch.load(self.path, map_location="cpu", weights_only=True)
        return Beit3.from_state(state.get("model", state), self.heads).eval().to(self.device)

    @cached_property
    def tokenizer(self):
        """The tokenizer, loaded when first used."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.vocabulary))

    def embed_images(self, images: list[Image]) -> np.ndarray:
        """Embed images, which are resized to a square (bicubic) and scaled to -1..1.

        Args:
            images: uint8 (height, width, 3) each.

        Returns:
            float32 (n, d), rows of unit length.
        """
        import torch

        side = self.network.side
        squares = [np.array(Pillow.fromarray(image).resize((side, side), Pillow.Resampling.BICUBIC)) for image in images]
        pixels = [torch.from_numpy(square).permute(2, 0, 1) / 127.5 - 1 for square in squares]
        return self._in_batches(self.network.embed_images, pixels)

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Embed texts as <s>, at most 62 tokens and </s>. The padding to 64 tokens is masked, so it does not change the result.

        Returns:
            float32 (m, d), rows of unit length.
        """
        import torch

        start, stop, pad = (self.tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<pad>"))
        rows = []
        for text in texts:
            tokens = [start, *self.tokenizer.encode(text, add_special_tokens=False).ids[:62], stop]
            rows.append(torch.tensor(tokens + [pad] * (64 - len(tokens))))
        return self._in_batches(lambda tokens: self.network.embed_texts(tokens, tokens == pad), rows)

    def _in_batches(self, embed, items) -> np.ndarray:
        """Call `embed` on stacks of at most `batch_size` of the tensors in `items`."""
        import torch

        with torch.inference_mode():
            batches = [torch.stack(items[k : k + self.batch_size]) for k in range(0, len(items), self.batch_size)]
            return np.concatenate([embed(batch.to(self.device)).cpu().numpy() for batch in batches])
