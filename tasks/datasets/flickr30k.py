"""Flickr30K in Karpathy's split: 1,000 test photographs with five captions each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from icmbench.tasks.base import DatasetError, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import MALFORMED, require_images, require_path


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
        try:
            entries = json.loads(self._file.read_bytes())["images"]
            splits = Counter(entry["split"] for entry in entries)
            chosen = [entry for entry in entries if entry["split"] == self._split]
            self._captions = {entry["filename"]: [str(s["raw"]) for s in entry["sentences"]] for entry in chosen}
        except MALFORMED as error:
            cause = f"{type(error).__name__}: {error}"
            raise DatasetError(f"{self._file}: not one of Karpathy's caption files ({cause}). {self.source}") from error
        if not chosen:
            available = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items())) or "no images"
            raise DatasetError(f"{self._file}: has no images of split {self._split!r}, but {available}; give another `split`")
        require_images(self.images, self._captions, self._file)
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
