"""RefCOCO, RefCOCO+, RefCOCOg and RefGTA: phrases that each mean one box of a photograph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from icmbench.tasks.base import DatasetError, Image, Target
from icmbench.tasks.datasets.folder import ImageFolder
from icmbench.tasks.datasets.images import printable_name, require_images, require_path
from icmbench.tasks.datasets.json_files import read_json
from icmbench.tasks.datasets.lists import Record, describe_value, records_of
from icmbench.tasks.datasets.sizes import are_shares, upright_size

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
        self._sizes: dict[str, tuple[int | None, int | None]] = {}  # Stated width and height by file name.
        self._fitting = False  # Whether the headers of all photographs have been compared with the annotations.
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
        entries = records_of(file, "references", read_json(file))
        if any("sentences" in entry.values for entry in entries):
            rows = self._toolbox_rows(entries)
        elif self._split is not None or self._instances_file is not None:
            raise DatasetError(f"{file}: a plain list of phrases and boxes, without splits; leave out `split` and `instances`")
        else:
            rows = [(entry.text("file_name"), entry.text("sentence"), entry.box("bbox_xywh")) for entry in entries]
        for file_name, sentence, box in rows:
            self._phrases.setdefault(file_name, []).append((sentence, box))
        if not rows:
            raise DatasetError(
                f"{file}: holds no phrases; each entry has file_name, sentence and bbox_xywh, or is the refer toolbox's"
            )
        if are_shares([box for _, _, box in rows]):
            raise DatasetError(
                f"{self._instances_file or file}: all boxes lie within the first pixel, as if they were shares of the picture's "
                "sides; write x, y, width and height in pixels"
            )
        require_images(self.images, self._phrases, file)
        return sorted(self._phrases)

    def _toolbox_rows(self, refs: list[Record]) -> list[tuple[str, str, list[float]]]:
        """File name, sentence and box of every sentence of the chosen split."""
        splits = Counter(ref.text("split") for ref in refs)
        if self._split not in splits:
            available = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items()))
            raise DatasetError(f"{self._refs_file}: has no split {self._split!r}; give `split`: {available} references")
        if self._instances_file is None:
            raise DatasetError(f"{self._refs_file}: holds no boxes; give the instances.json beside it as `instances`")
        _by_id([ref for ref in refs if "ref_id" in ref.values], "ref_id")
        images, annotations = self._instances(self._instances_file)
        rows = []
        for ref in refs:
            if ref.text("split") == self._split:
                image = _entry_of(ref, "image_id", images, self._instances_file)
                annotation = _entry_of(ref, "ann_id", annotations, self._instances_file)
                if annotation.values.get("image_id", ref.values["image_id"]) != ref.values["image_id"]:
                    raise annotation.refuse(
                        f"its `image_id` is {describe_value(annotation.values['image_id'])}, "
                        f"but {describe_value(ref.values['image_id'])} in "
                        f"{ref.item} of {self._refs_file}"
                    )
                # The file_name of a reference ends in the number of its annotation, so it names no image.
                name, box = image.text("file_name"), annotation.box("bbox")
                sentences = ref.records("sentences")
                if not sentences:
                    raise ref.refuse("`sentences` is empty, so that it asks for nothing")
                rows += [(name, sentence.text("sent"), box) for sentence in sentences]
        return rows

    def _instances(self, file: Path) -> tuple[dict[int | str, Record], dict[int | str, Record]]:
        """The entries of images and of annotations by their ids."""
        (document,) = records_of(file, "the file", [read_json(file)])
        document = Record(file, "the file", document.values)
        images, annotations = _by_id(document.records("images"), "id"), _by_id(document.records("annotations"), "id")
        for image in images.values():
            size = (image.side("width"), image.side("height"))
            name = image.text("file_name") if size != (None, None) else ""
            if name and self._sizes.setdefault(name, size) != size:
                raise image.refuse(
                    f"states {_sides(size)}, but another entry of {printable_name(name)!r} {_sides(self._sizes[name])}"
                )
        return images, annotations

    def read(self, image_id: str) -> Image:
        """Decoded, upright pixels, uint8 (height, width, 3), RGB.

        Raises:
            DatasetError: as for every dataset; or the photograph is not as large as the annotations say, or a box lies outside it.
        """
        image = super().read(image_id)
        misfit = self._misfit(image_id, image.shape[0], image.shape[1])
        if misfit is not None:
            raise DatasetError(misfit)
        return image

    def _misfit(self, image_id: str, height: int, width: int) -> str | None:
        """Why the annotations do not fit a photograph of this size in pixels, as a message; None if they do."""
        stated_width, stated_height = self._sizes.get(image_id, (None, None))
        stated = (stated_width or width, stated_height or height)
        if stated != (width, height):
            reason = "its EXIF orientation turns it" if stated == (height, width) else "it is another one"
            return (
                f"{self.path(image_id)}: is {width}x{height} where {self._instances_file} states {stated[0]}x{stated[1]}: "
                f"{reason}, so the boxes do not fit; give the photographs that were annotated"
            )
        for sentence, (left, top, box_width, box_height) in self._phrases[image_id]:
            right, bottom = left + box_width, top + box_height
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                place = f"ends at {right:g}, {bottom:g}" if right <= 0 or bottom <= 0 else f"starts at {left:g}, {top:g}"
                return (
                    f"{self._refs_file}: the box of {printable_name(sentence)!r} {place}, outside {image_id} of {width}x{height}; "
                    "correct the file"
                )
        return None

    def annotated(self, kind: str) -> list[str]:
        """For `referring`, every image.

        A task asks for them before anything is coded, so this is where the headers of all photographs are read, once.

        Raises:
            DatasetError: a photograph is not as large as the annotations say, or a box lies outside it.
        """
        if kind != "referring":
            return []
        for image_id in [] if self._fitting else self.ids:
            size = upright_size(self.path(image_id))
            if size is not None and self._misfit(image_id, *size) is not None:
                self.read(image_id)  # Names what is wrong, unless the header did not tell all.
        self._fitting = True
        return list(self.ids)

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


def _sides(size: tuple[int | None, int | None]) -> str:
    return f"a width of {size[0]} and a height of {size[1]}"


def _by_id(entries: Sequence[Record], key: str) -> dict[int | str, Record]:
    """Entries by an identifier, which two entries share only if they are equal."""
    unique: dict[int | str, Record] = {}
    for entry in entries:
        first = unique.setdefault(entry.identifier(key), entry)
        if first is not entry and first.values != entry.values:
            raise entry.refuse(f"`{key}` is {describe_value(entry.values[key])}, as in {first.item} with other contents")
    return unique


def _entry_of(ref: Record, key: str, entries: Mapping[int | str, Record], file: Path) -> Record:
    """The entry that a reference points to."""
    identifier = ref.identifier(key)
    if identifier not in entries:
        raise ref.refuse(f"`{key}` is {describe_value(identifier)}, which {file} does not list")
    return entries[identifier]
