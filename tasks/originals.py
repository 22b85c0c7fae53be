"""What is computed from the original images once, and used for every codec and point that shows the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from icmbench.tasks.base import Image

Features = TypeVar("Features")


class OriginalFeatures(Generic[Features]):
    """Features of the originals, kept while the same images come again, within a bound of bytes.

    The harness shows one chunk of images as decoded by each codec in turn, so what does not belong to the present chunk makes room
    first. Where one chunk needs more than the bound, its last originals are computed each time.
    """

    def __init__(self, compute: Callable[[Image], Features], size: Callable[[Features], int], bound: int) -> None:
        """compute: features of an original. size: their bytes. bound: how many bytes are kept."""
        self._compute, self._size, self._bound = compute, size, bound
        self._kept: dict[tuple[str, tuple[int, ...], bytes], tuple[Features, int]] = {}

    @property
    def held(self) -> int:
        """Bytes kept now."""
        return sum(size for _, size in self._kept.values())

    def get(self, image_id: str, original: Image, chunk: Collection[str]) -> Features:
        """Features of an original, which is one of the images `chunk` that are shown now."""
        key = (image_id, original.shape, hashlib.blake2b(original.tobytes(), digest_size=16).digest())
        if key in self._kept:
            return self._kept[key][0]
        features = self._compute(original)
        size = self._size(features)
        for old in [old for old in self._kept if old[0] not in chunk]:
            if self.held + size <= self._bound:
                break
            del self._kept[old]
        if self.held + size <= self._bound:
            self._kept[key] = features, size
        return features
