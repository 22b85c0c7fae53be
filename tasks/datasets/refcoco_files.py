"""Files of referring expressions: phrases and boxes of each photograph, and the sizes that the annotators saw.

    references (sentences, split) + instances (boxes, sizes), as the refer toolbox has them -> phrases by photograph
    or a plain JSON list of file names, phrases and boxes                                   -> phrases by photograph

The values of a reference point to entries by ids, which are compared with their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.images import printable_name
from icmbench.tasks.datasets.json_files import read_json
from icmbench.tasks.datasets.lists import Record, describe_value, records_of
from icmbench.tasks.datasets.sizes import are_shares

CONVERSION = (
    "python -c \"import json, pickle; json.dump(pickle.load(open('{pickle}', 'rb'), encoding='latin1'), open('{json}', 'w'))\""
)
Phrase = tuple[str, list[float]]  # A sentence and its box as x, y, width and height in pixels.
Row = tuple[str, str, list[float]]  # File name, sentence and box.


class ReferenceFiles:
    """The phrases of one split.

    Args:
        refs: the refer toolbox's references, converted to JSON; or a JSON list of objects with `file_name`, `sentence` and
            `bbox_xywh`.
        instances: the refer toolbox's instances.json, which a plain list does not need.
        split: which references to take.

    Attributes:
        refs, instances: see Args.
        phrases: the sentences and boxes of each photograph, by file name.

    Raises:
        DatasetError: a file is malformed or a pickle, or the split does not exist.
    """

    def __init__(self, refs: Path, instances: Path | None, split: str | None) -> None:
        self.refs, self.instances, self._split = refs, instances, split
        self._sizes: dict[str, tuple[int | None, int | None]] = {}  # Stated width and height by file name.
        self.phrases: dict[str, list[Phrase]] = {}
        for file_name, sentence, box in self._read():
            self.phrases.setdefault(file_name, []).append((sentence, box))

    def misfit(self, photograph: Path, file_name: str, height: int, width: int) -> str | None:
        """Why the annotations do not fit a photograph of this size in pixels, as a message; None if they do.

        Args:
            photograph: the file, for the message.
            file_name: its name in the annotations.
            height: of the upright photograph.
            width: of the upright photograph.
        """
        stated_width, stated_height = self._sizes.get(file_name, (None, None))
        stated = (stated_width or width, stated_height or height)
        if stated != (width, height):
            reason = "its EXIF orientation turns it" if stated == (height, width) else "it is another one"
            return (
                f"{photograph}: is {width}x{height} where {self.instances} states {stated[0]}x{stated[1]}: "
                f"{reason}, so the boxes do not fit; give the photographs that were annotated"
            )
        for sentence, (left, top, box_width, box_height) in self.phrases[file_name]:
            right, bottom = left + box_width, top + box_height
            if left >= width or top >= height or right <= 0 or bottom <= 0:
                place = f"ends at {right:g}, {bottom:g}" if right <= 0 or bottom <= 0 else f"starts at {left:g}, {top:g}"
                return (
                    f"{self.refs}: the box of {printable_name(sentence)!r} {place}, outside {file_name} of {width}x{height}; "
                    "correct the file"
                )
        return None

    def _read(self) -> list[Row]:
        if self.refs.suffix in (".p", ".pkl", ".pickle"):
            command = CONVERSION.format(pickle=self.refs, json=self.refs.with_suffix(".json"))
            raise DatasetError(
                f"{self.refs}: a Python pickle can run any code when it is read, so it is refused; if you trust its origin, "
                f"convert it once with {command} and give the JSON"
            )
        entries = records_of(self.refs, "references", read_json(self.refs))
        if any("sentences" in entry.values for entry in entries):
            rows = self._toolbox_rows(entries)
        elif self._split is not None or self.instances is not None:
            raise DatasetError(f"{self.refs}: a plain list of phrases and boxes, without splits; leave out `split` and `instances`")
        else:
            rows = [(entry.text("file_name"), entry.text("sentence"), entry.box("bbox_xywh")) for entry in entries]
        if not rows:
            raise DatasetError(
                f"{self.refs}: holds no phrases; each entry has file_name, sentence and bbox_xywh, or is the refer toolbox's"
            )
        if are_shares([box for _, _, box in rows]):
            raise DatasetError(
                f"{self.instances or self.refs}: all boxes lie within the first pixel, as if they were shares of the picture's "
                "sides; write x, y, width and height in pixels"
            )
        return rows

    def _toolbox_rows(self, refs: list[Record]) -> list[Row]:
        """Every sentence of the chosen split."""
        splits = Counter(ref.text("split") for ref in refs)
        if self._split not in splits:
            available = ", ".join(f"{split} ({count})" for split, count in sorted(splits.items()))
            raise DatasetError(f"{self.refs}: has no split {self._split!r}; give `split`: {available} references")
        if self.instances is None:
            raise DatasetError(f"{self.refs}: holds no boxes; give the instances.json beside it as `instances`")
        _by_id([ref for ref in refs if "ref_id" in ref.values], "ref_id")
        images, annotations = self._read_instances(self.instances)
        rows = []
        for ref in refs:
            if ref.text("split") == self._split:
                image = _entry_of(ref, "image_id", images, self.instances)
                annotation = _entry_of(ref, "ann_id", annotations, self.instances)
                if annotation.values.get("image_id", ref.values["image_id"]) != ref.values["image_id"]:
                    raise annotation.refuse(
                        f"its `image_id` is {describe_value(annotation.values['image_id'])}, "
                        f"but {describe_value(ref.values['image_id'])} in "
                        f"{ref.item} of {self.refs}"
                    )
                # The file_name of a reference ends in the number of its annotation, so it names no image.
                name, box = image.text("file_name"), annotation.box("bbox")
                sentences = ref.records("sentences")
                if not sentences:
                    raise ref.refuse("`sentences` is empty, so that it asks for nothing")
                rows += [(name, sentence.text("sent"), box) for sentence in sentences]
        return rows

    def _read_instances(self, file: Path) -> tuple[dict[int | str, Record], dict[int | str, Record]]:
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
