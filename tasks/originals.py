"""Features of the original images, computed once and shared by all codecs and rate points."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from icmbench.tasks.base import Image

Features = TypeVar("Features")


class OriginalFeatures(Generic[Features]):
    """A cache of the originals' features, bounded in bytes.

    The harness shows one chunk of images as decoded by each codec in turn. Features of images outside the current chunk are
    therefore dropped first. If one chunk needs more than the bound, its last images are computed each time.

    Args:
        compute: the features of an original.
        size: the bytes of an original's features.
        max_bytes: how many bytes are kept.
    """

    def __init__(self, compute: Callable[[Image], Features], size: Callable[[Features], int], max_bytes: int) -> None:
        self._compute, self._size, self._max_bytes = compute, size, max_bytes
        self._kept: dict[tuple[str, tuple[int, ...], bytes], tuple[Features, int]] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(size for _, size in self._kept.values())

    def get(self, image_id: str, original: Image, chunk: Collection[str]) -> Features:
        """The features of an original, from the cache if possible.

        Args:
            image_id: the image.
            original: its pixels; features of other pixels under the same id are not reused.
            chunk: ids of the images that are shown now, this one included.
        """
        key = (image_id, original.shape, hashlib.blake2b(original.tobytes(), digest_size=16).digest())
        if key in self._kept:
            return self._kept[key][0]
        features = self._compute(original)
        size = self._size(features)
        for stale in [stale for stale in self._kept if stale[0] not in chunk]:
            if self.kept_bytes + size <= self._max_bytes:
                break
            del self._kept[stale]
        if self.kept_bytes + size <= self._max_bytes:
            self._kept[key] = features, size
        return features
