"""SHA-256 of the source pixels of every image file, remembered between runs while the file stays what it was.

    path, size, mtime, ctime, inode  ->  sources/ of the run folder  ->  SHA-256, height, width

An image that was swapped in place with its size and mtime kept has another ctime. Where ctime is missing or cannot be trusted, as
on network disks, nothing is remembered and pixels are hashed in every run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.keys import row_key
from icmbench.harness.store.tidying import compact, store_index
from icmbench.harness.work.blocks import Sources
from icmbench.tasks.base import Dataset, DatasetError, Image

SOURCE = pa.schema([("sha256", pa.string()), ("height", pa.int32()), ("width", pa.int32())])
# File systems of Linux whose ctime is kept by this machine's own kernel. All others are taken for network disks.
LOCAL_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "bcachefs", "jfs", "squashfs"}


class SourceRecords:
    """Recorded hashes of the images of one dataset.

    Args:
        folder: the run folder.
        dataset: the dataset.
    """

    def __init__(self, folder: Folder, dataset: Dataset) -> None:
        self._dataset = dataset
        reader = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        facts = json.dumps([reader, dataset.preprocessing, version("pillow")])
        self._rows = Collection(folder, "sources", facts, SOURCE, SOURCE.names)
        self._rows.refresh()
        self._trusted_devices: dict[int, bool] = {}
        self._session = Sources()  # What this process hashed itself.

    def refresh(self) -> None:
        """Learn of the hashes that other processes recorded."""
        self._rows.refresh()

    def recorded(self, ids: Sequence[str]) -> Sources:
        """What is recorded of images; no image is read."""
        keys = {image_id: key for image_id in ids if (key := self._key(image_id)) is not None}
        rows = self._rows.find(list(keys.values()))
        present = [image_id for image_id, row in zip(keys, rows, strict=True) if row >= 0]
        table = self._rows.facts(rows[rows >= 0], SOURCE.names)
        columns = {name: dict(zip(present, table.column(name).to_pylist(), strict=True)) for name in SOURCE.names}
        shapes = {image_id: (columns["height"][image_id], columns["width"][image_id]) for image_id in present}
        for image_id in ids:
            if image_id not in keys and image_id in self._session.sha256:
                columns["sha256"][image_id], shapes[image_id] = self._session.sha256[image_id], self._session.shapes[image_id]
        return Sources(columns["sha256"], {}, shapes)

    def untrusted(self, ids: Sequence[str]) -> list[str]:
        """Images whose files are there, but whose ctime cannot be trusted, and that this process has not hashed yet."""
        return [i for i in ids if i not in self._session.sha256 and self._key(i) is None and _stat(self._dataset.path(i))]

    def hash(self, ids: Sequence[str], read: Callable[[str], Image], sha256: Callable[[str], str], tolerant: bool) -> Sources:
        """The recorded facts of images, and those of the others, which are read, hashed and recorded.

        Args:
            ids: the images.
            read: returns the pixels of an image.
            sha256: returns their hash.
            tolerant: whether an image that cannot be read is listed among the errors instead of raising one.

        Raises:
            DatasetError: an image cannot be read, and `tolerant` is False.
        """
        sources = self.recorded(ids)
        new: list[dict[str, Any]] = []
        for image_id in ids:
            if image_id in sources.sha256:
                continue
            key = self._key(image_id)
            try:
                image = read(image_id)
            except DatasetError as error:
                if not tolerant:
                    raise
                sources.errors[image_id] = str(error)
                continue
            height, width = image.shape[:2]
            sources.sha256[image_id], sources.shapes[image_id] = sha256(image_id), (height, width)
            self._session.sha256[image_id], self._session.shapes[image_id] = sources.sha256[image_id], (height, width)
            if key is not None and key == self._key(image_id):  # The file did not change while it was read.
                new.append({"key": key, "sha256": sources.sha256[image_id], "height": height, "width": width})
        if new:
            self._rows.append(new)
        return sources

    def failure_key(self, image_id: str) -> bytes:
        """A key for the failure to read an image file as it is now."""
        path = self._dataset.path(image_id)
        return row_key("source", self._dataset.preprocessing, image_id, str(path), *_stat(path))

    def save(self) -> None:
        """Merge small shards, and store the index."""
        self._rows.refresh()
        compact(self._rows, [self._rows.shards_of(self._rows.all_rows())])
        store_index(self._rows)

    def _key(self, image_id: str) -> bytes | None:
        """Key of an image file by what changes with its content; None if that cannot be trusted."""
        path = self._dataset.path(image_id)
        facts = _stat(path)
        if not facts:
            return None
        device = facts[-1]
        if device not in self._trusted_devices:
            self._trusted_devices[device] = has_trusted_ctime(path)
        return row_key(image_id, str(path), *facts) if self._trusted_devices[device] else None


def _stat(path: Path) -> tuple[int, ...]:
    """Size, mtime, ctime, inode and device of a file; empty if it cannot be told."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


def has_trusted_ctime(path: Path) -> bool:
    """Whether the file system notes each change of a file in its ctime, by a clock that is this machine's own.

    Args:
        path: a file on it.
    """
    try:
        lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        target = os.path.realpath(path)
    except OSError:  # Not Linux: on macOS ctime is what it is here, on Windows it is the time of creation.
        return os.name == "posix"
    best = ("", "")
    for _, point, kind, *_ in (line.split(" ") for line in lines):
        point = point.replace("\\040", " ")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best[0]):
            best = point, kind
    return best[1] in LOCAL_FILE_SYSTEMS
