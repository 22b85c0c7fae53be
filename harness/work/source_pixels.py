"""Source pixels of an experiment: read once for all codecs, recognised by their recorded hashes, and compared with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from icmbench.harness.store.folder import Folder
from icmbench.harness.work.blocks import ImageBlock, Sources
from icmbench.harness.work.failures import Failures
from icmbench.harness.work.pixels import PixelCache
from icmbench.harness.work.source_records import SourceRecords
from icmbench.tasks.base import Dataset, DatasetError, Image


class SourcePixels:
    """Reads and hashes the images of an experiment's datasets.

    Args:
        folder: the run folder, which holds the recorded hashes.
        datasets: the datasets by name.
        failures: receives the images that cannot be read, if the experiment tolerates failures.
        tolerant: whether it does.
    """

    def __init__(self, folder: Folder, datasets: Mapping[str, Dataset], failures: Failures, tolerant: bool) -> None:
        self._folder, self._datasets, self._failures, self._tolerant = folder, datasets, failures, tolerant
        self._cache = PixelCache()

    def read(self, dataset: str, image_id: str) -> Image:
        """Source pixels, read-only uint8 (height, width, 3); the latest ones are kept in memory.

        Raises:
            DatasetError: the image cannot be read.
        """
        return self._cache.read(dataset, image_id, self._datasets[dataset].read)

    def read_recorded(self, dataset: str, image_id: str, sources: Sources) -> Image:
        """Source pixels, as `read` returns them, compared with the hash that was recorded of them.

        Raises:
            DatasetError: the image cannot be read, or has other pixels than those recorded.
        """
        image = self.read(dataset, image_id)
        if self._sha256(dataset, image_id) != sources.sha256[image_id]:
            path = self._datasets[dataset].path(image_id)
            raise DatasetError(
                f"{path} has other pixels than were recorded of it: if it was changed during this run, run the same command again; "
                f"otherwise delete {self._folder.full_path('sources')} first"
            )
        return image

    def free_all_but(self, block: ImageBlock) -> None:
        """Free the memory of all images but those of a block."""
        self._cache.keep_only({(block.dataset, image_id) for image_id in block.ids})

    # Hashes.

    def refresh(self) -> None:
        """Learn of the source pixels that other processes hashed since."""
        for records in self._records.values():
            records.refresh()

    def recorded(self, dataset: str, ids: Sequence[str]) -> Sources:
        """Recorded hashes and shapes of source pixels, and recorded failures to read them.

        No image is read, but for those whose files cannot be recognised between runs because their ctime is not to be trusted.
        """
        records = self._records[dataset]
        if untrusted := records.untrusted(ids):
            self._hash(dataset, untrusted, self._tolerant)
        sources = records.recorded(ids)
        if self._tolerant and len(self._failures):
            absent = [image_id for image_id in ids if image_id not in sources.sha256]
            failed = self._failures.are_recorded([records.failure_key(image_id) for image_id in absent])
            sources.errors.update({i: "cannot be read" for i, is_failed in zip(absent, failed, strict=True) if is_failed})
        return sources

    def hash_block(self, block: ImageBlock) -> Sources:
        """Hashes and shapes of a block's source pixels: the recorded ones, or new ones, which are recorded.

        Raises:
            DatasetError: an image cannot be read, and the experiment does not tolerate failures.
        """
        return self._hash(block.dataset, block.ids, self._tolerant)

    def hash_unknown(self) -> None:
        """Hash the images whose files have changed since their pixels were recorded, if only in their ctime.

        A hard link that is made or removed elsewhere changes it, as when an environment that shares packages with this one is
        deleted. Images that cannot be read are passed over.
        """
        self.refresh()
        for name, dataset in self._datasets.items():
            recorded = self.recorded(name, dataset.ids)
            unknown = [i for i in dataset.ids if i not in recorded.sha256 and i not in recorded.errors]
            self._hash(name, unknown, tolerant=True)

    def describe_repeated(self) -> list[str]:
        """A sentence for each dataset in which several images have the same pixels. All of them count in its scores."""
        sentences = []
        for name, dataset in self._datasets.items():
            first: dict[str, str] = {}
            repeated = [(first.setdefault(sha256, i), i) for i, sha256 in self.recorded(name, dataset.ids).sha256.items()]
            pairs = [pair for pair in repeated if pair[0] != pair[1]]
            if pairs:
                which = f"such as {pairs[0][0]!r} and {pairs[0][1]!r}"
                sentences.append(f"{name}: {len(pairs)} images have the pixels of another image, {which}; each of them counts")
        return sentences

    def save(self) -> None:
        """Merge small shards of records, and store their indices."""
        for records in self._records.values():
            records.save()

    @cached_property
    def _records(self) -> dict[str, SourceRecords]:
        return {name: SourceRecords(self._folder, dataset) for name, dataset in self._datasets.items()}

    def _sha256(self, dataset: str, image_id: str) -> str:
        return self._cache.sha256(dataset, image_id, self._datasets[dataset].read)

    def _hash(self, dataset: str, ids: Sequence[str], tolerant: bool) -> Sources:
        """Recorded and new hashes of images; those that cannot be read are failures if the experiment tolerates some."""
        records = self._records[dataset]

        def read(image_id: str) -> Image:
            return self.read(dataset, image_id)

        def sha256(image_id: str) -> str:
            return self._sha256(dataset, image_id)

        sources = records.hash(ids, read, sha256, tolerant)
        if self._tolerant:
            self._failures.record({records.failure_key(image_id): text for image_id, text in sources.errors.items()})
        return sources
