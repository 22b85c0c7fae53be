"""RefCOCO, RefCOCO+, RefCOCOg and RefGTA: phrases that each mean one box of a photograph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import MALFORMED, require_images, require_path

CONVERSION = (
    "python -c \"import json, pickle; json.dump(pickle.load(open('{pickle}', 'rb'), encoding='latin1'), open('{json}', 'w'))\""
)


class RefCoco(ImageFolder):
    """Referring expressions: RefCOCO, RefCOCO+, RefCOCOg, RefGTA, or a plain JSON of phrases and boxes.

    Args:
        images: the folder of photographs.
        refs: the refer toolbox's references, converted to JSON, together with `instances` and `split`; or a JSON list of objects
            with `file_name`, `sentence` and `bbox_xywh`, which needs neither.
        instances: the refer toolbox's instances.json, which holds the boxes.
        split: which references to take: val, testA, testB, test, ...
        preprocessing: must be `native`, because boxes do not follow other pixels.
        limit: keep only the first images, by file name; None keeps all.
        name: the dataset's name in messages and tables.

    Raises:
        DatasetError: a file is missing, malformed or a pickle, the split does not exist, or `preprocessing` is not `native`.
    """

    source: ClassVar[str] = (
        "Download the annotations of RefCOCO, RefCOCO+ or RefCOCOg from the refer toolbox and COCO's train2014.zip, or RefGTA's "
        "annotations and images from the authors' project (easy-to-understand-REG), and unpack: refcoco/instances.json, "
        "refcoco/refs(unc).p and train2014/*.jpg."
    )

    def __init__(
        self,
        images: Path,
        refs: Path,
        instances: Path | None = None,
        split: str | None = None,
        preprocessing: str = "native",
        limit: int | None = None,
        name: str = "refcoco",
    ) -> None:
        self._refs_file, self._instances_file, self._split = Path(refs), None if instances is None else Path(instances), split
        self._phrases: dict[str, list[tuple[str, list[float]]]] = {}
        for path in (self._refs_file, self._instances_file):
            if path is not None:
                require_path(path, "annotations", self.source)
        super().__init__(images, preprocessing, limit, name)
        if self.preprocessing != "native":
            raise DatasetError(
                f"dataset {name!r}: boxes stand on the original pixels and do not follow preprocessing {self.preprocessing!r}; "
                "use native"
            )

    def _list(self) -> list[str]:
        file = self._refs_file
        if file.suffix in (".p", ".pkl", ".pickle"):
            command = CONVERSION.format(pickle=file, json=file.with_suffix(".json"))
            raise DatasetError(
                f"{file}: a Python pickle can run any code when it is read, so it is refused; if you trust its origin, convert it "
                f"once with {command} and give the JSON"
            )
        entries = _load_json(file)
        try:
            plain = isinstance(entries, list) and (not entries or "sentence" in entries[0])
            rows = [(e["file_name"], e["sentence"], e["bbox_xywh"]) for e in entries] if plain else self._toolbox_rows(entries)
            for file_name, sentence, box in rows:
                self._phrases.setdefault(file_name, []).append((str(sentence), [float(side) for side in box]))
        except MALFORMED as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{file}: not a list of references ({type(error).__name__}: {error}); each has file_name, sentence and bbox_xywh, "
                "or is as in the refer toolbox"
            ) from error
        bad = next((name for name, phrases in self._phrases.items() if any(len(box) != 4 for _, box in phrases)), None)
        if bad is not None:
            raise DatasetError(f"{file}: a box of {bad!r} is not [x, y, width, height]; correct the file")
        require_images(self.images, self._phrases, file)
        return sorted(self._phrases)

    def _toolbox_rows(self, refs: list[dict[str, Any]]) -> list[tuple[str, str, list[float]]]:
        """File name, sentence and box of every sentence of the chosen split."""
        splits = Counter(ref["split"] for ref in refs)
        if self._split not in splits:
            available = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items()))
            raise DatasetError(f"{self._refs_file}: has no split {self._split!r}; give `split`: {available} references")
        if self._instances_file is None:
            raise DatasetError(f"{self._refs_file}: holds no boxes; give the instances.json beside it as `instances`")
        instances = _load_json(self._instances_file)
        boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
        # The file_name of a reference ends in the number of its annotation, so it names no image.
        names = {image["id"]: image["file_name"] for image in instances["images"]}
        return [
            (names[ref["image_id"]], sentence["sent"], boxes[ref["ann_id"]])
            for ref in refs
            if ref["split"] == self._split
            for sentence in ref["sentences"]
        ]

    def annotated(self, kind: str) -> list[str]:
        """For `referring`, every image."""
        return list(self.ids) if kind == "referring" else []

    def targets(self, kind: str, ids: Sequence[str]) -> list[Target]:
        """For `referring`, a list of texts `sentences` per image, and their `boxes`, float64 (n, 4) as x, y, width, height.

        Raises:
            DatasetError: another kind is asked for.
        """
        if kind != "referring":
            raise DatasetError(f"dataset {self.name!r} has no {kind!r} annotations, only `referring`; use reference: original")
        targets: list[Target] = []
        for image_id in ids:
            sentences, boxes = zip(*self._phrases[image_id], strict=True)
            targets.append({"sentences": list(sentences), "boxes": np.array(boxes, dtype=np.float64)})
        return targets


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error}); give the annotations as JSON") from error
