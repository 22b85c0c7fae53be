"""Dual encoders of open_clip for image-text retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import Image, file_sha256, fingerprint
from icmbench.tasks.models.batches import chunks, picture, unit_rows
from icmbench.tasks.models.devices import Device, Dtype
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import commit_of, downloading, folder_sha256, require, versions

PRECISION = {"float32": "fp32", "float16": "pure_fp16", "bfloat16": "pure_bf16"}


class OpenClip:
    """Every dual encoder of open_clip: CLIP, SigLIP, CoCa, EVA, MobileCLIP and others.

    Images and texts are prepared by the model's own preprocessing and tokenizer.

    Args:
        architecture: name from `open_clip.list_models()` such as `ViT-B-32`, or `hf-hub:org/model`; leave out if `path` is a
            folder.
        pretrained: name of a weight set from `open_clip.list_pretrained_tags_by_model(architecture)`; leave out with `hf-hub:` or
            `path`.
        path: checkpoint file for that architecture, or a folder with open_clip_config.json.
        device: where the network runs.
        dtype: type of weights and activations; part of the fingerprint.
        batch_size: largest number of images or texts in a forward pass. It changes results by rounding only.

    Raises:
        ModelError: architecture or weights are named twice or not at all.
        ModuleNotFoundError: torch or open_clip is not installed.
    """

    task: ClassVar[str] = "retrieval"
    extra: ClassVar[str] = "open-clip"
    weights: ClassVar[str] = "open_clip's own, downloaded by name and tag, or `path` to a checkpoint; licences: see the model cards"

    def __init__(
        self,
        architecture: str | None = None,
        pretrained: str | None = None,
        path: Path | None = None,
        device: Device = "cpu",
        dtype: Dtype = "float32",
        batch_size: int = 32,
    ) -> None:
        require("torch", "open_clip")
        is_folder = path is not None and path.is_dir()
        if (architecture is None) != is_folder:
            raise ModelError("give `architecture`, or a folder with open_clip_config.json as `path`")
        has_weights = is_folder or (architecture or "").startswith("hf-hub:")
        if has_weights + (pretrained is not None) + (path is not None and not is_folder) != 1:
            raise ModelError("name the weights once: `pretrained` (a tag), `path` (a checkpoint), or an `hf-hub:` architecture")
        self.name = f"local-dir:{path}" if is_folder else str(architecture)
        self.pretrained, self.path = pretrained, path
        self.device, self.dtype, self.batch_size = device, dtype, batch_size

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            model="open-clip",
            architecture=None if self.name.startswith("local-dir:") else self.name,
            pretrained=self.pretrained,
            weights=self._weights(),
            dtype=self.dtype,
            **versions("open-clip-torch", "torch", "torchvision", "pillow"),
        )

    def _weights(self) -> Any:
        """What identifies the weights: SHA-256 of local files, a commit of the hub, or the file name of the download."""
        if self.path is not None:
            return folder_sha256(self.path) if self.path.is_dir() else file_sha256(self.path)
        if self.name.startswith("hf-hub:"):
            return commit_of(self.name.removeprefix("hf-hub:"))
        import open_clip

        source = open_clip.get_pretrained_cfg(self.name, self.pretrained)
        if not source:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(self.name)) or "none"
            raise ModelError(f"pretrained: open_clip has no {self.pretrained!r} for {self.name!r}; known: {tags}")
        repository, _, file = source.get("hf_hub", "").rpartition("/")  # Either org/name/ or org/name/file.
        return {f"{repository}/{file}": commit_of(repository)} if repository else source["url"].rsplit("/")[-1]

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        """Network, image transform, tokenizer."""
        import open_clip

        weights = str(self.path) if self.path and not self.path.is_dir() else self.pretrained
        with downloading(str(self.path or self.name), local=self.path is not None):
            network, _, transform = open_clip.create_model_and_transforms(
                self.name, weights, precision=PRECISION[self.dtype], device=self.device, weights_only=True
            )
            return network.eval(), transform, open_clip.get_tokenizer(self.name)

    def embed_images(self, images: Sequence[Image]) -> npt.NDArray[np.float32]:
        """Embed images, uint8 (height, width, 3) each, as float32 (n, d) with rows of unit length."""
        import torch

        network, transform, _ = self._loaded
        rows = []
        for batch in chunks(images, self.batch_size):
            inputs = torch.stack([transform(picture(image)) for image in batch])
            with torch.inference_mode():
                rows.append(unit_rows(network.encode_image(inputs.to(self.device, getattr(torch, self.dtype)))))
        return np.concatenate(rows)

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts as float32 (m, d) with rows of unit length."""
        import torch

        network, _, tokenizer = self._loaded
        rows = []
        for batch in chunks(texts, self.batch_size):
            with torch.inference_mode():
                rows.append(unit_rows(network.encode_text(tokenizer(list(batch)).to(self.device))))
        return np.concatenate(rows)
