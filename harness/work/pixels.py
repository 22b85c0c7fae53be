"""Source pixels that a process keeps in memory, so that a block of images is read once for all codecs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection

from icmbench.harness.store.keys import pixel_sha256
from icmbench.tasks.base import Image

CACHE_BYTES = 256 * 2**20


class PixelCache:
    """The images read last, up to `CACHE_BYTES`. Two threads may use it."""

    def __init__(self) -> None:
        self._images: OrderedDict[tuple[str, str], Image] = OrderedDict()
        self._sha256: dict[tuple[str, str], str] = {}  # Of images in memory that were hashed.
        self._bytes = 0
        self._lock = threading.Lock()

    def read(self, dataset: str, image_id: str, read: Callable[[str], Image]) -> Image:
        """An image, read-only uint8 (height, width, 3).

        Args:
            dataset: name of its dataset.
            image_id: the image.
            read: returns its pixels by the image's id, if they are not in memory.
        """
        key = (dataset, image_id)
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
            image = read_only(read(image_id))
            self._images[key] = image
            self._bytes += image.nbytes
            while self._bytes > CACHE_BYTES and len(self._images) > 1:
                self._drop(next(iter(self._images)))
            return image

    def sha256(self, dataset: str, image_id: str, read: Callable[[str], Image]) -> str:
        """`pixel_sha256` of an image, computed once while it is in memory, from the same arguments as `read`."""
        image = self.read(dataset, image_id, read)
        key = (dataset, image_id)
        with self._lock:
            if self._images.get(key) is image and key in self._sha256:
                return self._sha256[key]
        value = pixel_sha256(image)
        with self._lock:
            if self._images.get(key) is image:
                self._sha256[key] = value
        return value

    def keep_only(self, keys: Collection[tuple[str, str]]) -> None:
        """Free all images but some, which are given as dataset and image id."""
        with self._lock:
            for key in [key for key in self._images if key not in keys]:
                self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        self._bytes -= self._images.pop(key).nbytes
        self._sha256.pop(key, None)


def read_only(image: Image) -> Image:
    """A view of an image that no codec or task can write to, so that all of them get the same pixels."""
    view = image.view()
    view.setflags(write=False)
    return view
