"""Flickr30K in Karpathy's split: 1,000 test photographs with five captions each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from icmbench.tasks.base import DatasetError, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import require_images, require_path
from icmbench.tasks.datasets.json_files import read_json
from icmbench.tasks.datasets.lists import Record

SPLITS = ("train", "val", "test", "restval")  # The last one stands in Karpathy's file of COCO.


class Flickr30k(ImageFolder):
    """Flickr30K for image-text retrieval: Karpathy's test split of 1,000 photographs with five captions each.

    Args:
        images: the folder of photographs.
        captions: dataset_flickr30k.json of Karpathy's splits.
        split: which images to take.
        preprocessing: what is done to every image before coding; see `images.Preprocessing`.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        DatasetError: a file is missing or malformed, or the split has no images.
    """

    source: ClassVar[str] = (
        "Request the photographs from the Flickr30K project (the Denotation Graph page of the University of Illinois), unpack "
        "flickr30k-images/*.jpg, and download dataset_flickr30k.json with Karpathy's caption datasets (deepimagesent)."
    )

    def __init__(
        self,
        images: Path,
        captions: Path,
        split: Literal["test", "val", "train"] = "test",
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "flickr30k",
    ) -> None:
        self._file, self._split = Path(captions), split
        self._captions: dict[str, list[str]] = {}
        require_path(self._file, "captions", self.source)
        super().__init__(images, preprocessing, limit, name)

    def _list(self) -> list[str]:
        document = read_json(self._file)
        if not isinstance(document, dict) or "images" not in document:
            raise DatasetError(f"{self._file}: not one of Karpathy's caption files, which hold `images`. {self.source}")
        entries = Record(self._file, "the file", document).records("images")
        splits = Counter(entry.text("split") for entry in entries)
        if unknown := sorted(set(splits) - set(SPLITS)):
            stray = next(entry for entry in entries if entry.text("split") == unknown[0])
            raise stray.refuse(f"`split` is {unknown[0]!r}, not one of {', '.join(SPLITS)}")
        chosen = {name: entry for name, entry in _unique_entries(entries).items() if entry.text("split") == self._split}
        if not chosen:
            available = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items())) or "no images"
            raise DatasetError(f"{self._file}: has no images of split {self._split!r}, but {available}; give another `split`")
        require_images(self.images, chosen, self._file)
        self._captions = {name: _captions_of(entry) for name, entry in chosen.items()}
        return sorted(self._captions)

    def annotated(self, kind: str) -> list[str]:
        """For `captions`, every image."""
        return list(self.ids) if kind == "captions" else []

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """For `captions`, a list of texts `captions` per image.

        Raises:
            DatasetError: another kind is asked for.
        """
        if kind != "captions":
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations, only `captions`; use reference: original")
        return [{"captions": list(self._captions[image_id])} for image_id in ids]


def _unique_entries(entries: Iterable[Record]) -> dict[str, Record]:
    """Entries by file name. A file may stand there twice with equal contents, and in one split only."""
    unique: dict[str, Record] = {}
    for entry in entries:
        name = entry.text("filename")
        first = unique.setdefault(name, entry)
        if first is not entry and any(first.values.get(key) != entry.values.get(key) for key in ("split", "sentences")):
            raise entry.refuse(f"`filename` {name!r} stands in {first.item} with other contents")
    return unique


def _captions_of(entry: Record) -> list[str]:
    captions = [sentence.text("raw") for sentence in entry.records("sentences")]
    if not captions:
        raise entry.refuse("`sentences` is empty, and an image without captions cannot be retrieved")
    return captions
