"""manifest.json: which pixels a folder of pictures holds, so that predictions made of them elsewhere can be told from all others.

    icmbench export  ->  pictures and manifest.json  ->  a program elsewhere  ->  predictions beside a copy of manifest.json

The manifest names the pixels of every picture by `fingerprints.pixel_sha256`. Whoever predicts copies it to the predictions: what
it lists are the pixels that they were made of, also after the pictures were exported anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.json_entries import Entries
from icmbench.tasks.datasets.json_files import json_excerpt, read_json
from icmbench.tasks.models.errors import ModelError

MANIFEST = "manifest.json"
FORMAT = "icmbench-export-1"
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ExportedImage:
    """One picture of a manifest.

    Attributes:
        id: the image's id in its dataset.
        file: the picture, below the folder of the manifest, with slashes.
        pixels: `pixel_sha256` of the picture.
        source: `pixel_sha256` of the photograph before coding; empty if it is not known.
        height: pixels of the picture.
        width: pixels of the picture.
        bytes: size of the stream; None for a photograph that was not coded, or where no real stream was written.
    """

    id: str
    file: str
    pixels: str
    source: str
    height: int
    width: int
    bytes: int | None


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        facts: where the pictures are from: `run`, `codec`, `point`, `seed`, `dataset` and the like.
        images: the pictures.
    """

    facts: Mapping[str, Any]
    images: tuple[ExportedImage, ...]

    def to_bytes(self) -> bytes:
        """The content of the file."""
        lines = ",\n".join("  " + json.dumps(asdict(image)) for image in self.images)
        facts = json.dumps({"format": FORMAT, **self.facts}, indent=1)
        return f'{facts[:-2]},\n "images": [\n{lines}\n ]\n}}\n'.encode()


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        ModelError: the file cannot be read, is of another format, or lists an image wrongly or twice.
    """
    document = read_json_of_predictions(path, "export the run again")
    if type(document) is not dict or document.get("format") != FORMAT:
        stated = json_excerpt(document.get("format") if type(document) is dict else document)
        raise ModelError(f"{path}: its `format` is {stated}, and this icmbench reads {FORMAT!r}: use the icmbench that exported it")
    try:
        entries = Entries(path, "images", document.get("images"))
        names = entries.texts("id"), entries.texts("file")
        for key in ("height", "width"):
            entries.whole_numbers(key, 1, 2**31)
        entries.optional_whole_numbers("bytes", 1)
        for key, fits in (("pixels", _is_sha256), ("source", _is_sha256_or_empty)):
            if not all(map(fits, entries.column(key))):
                entries.refuse_first(key, "SHA-256 in hexadecimal", fits)
    except DatasetError as error:
        raise ModelError(str(error)) from None
    for file in names[1]:
        if file.startswith("/") or not {"", ".", ".."}.isdisjoint(file.split("/")):
            raise ModelError(f"{path}: lists the file {file!r}, which is none below its folder; export the run again")
    for key, values in zip(("id", "file"), names, strict=True):
        if len(set(values)) != len(values):
            twice = next(value for k, value in enumerate(values) if value in values[:k])
            raise ModelError(f"{path}: lists the {key} {twice!r} twice; export the run again")
    images = tuple(_image(item) for item in entries.items)
    return Manifest({key: value for key, value in document.items() if key not in ("format", "images")}, images)


def read_json_of_predictions(path: Path, remedy: str = "write the predictions again") -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        remedy: what the user does about a file that is damaged, for the message.

    Raises:
        ModelError: it cannot be read, is no JSON, or gives a key of one object two values.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {remedy}")
    try:
        return read_json(path)
    except DatasetError as error:
        raise ModelError(f"{str(error).rpartition(';')[0]}; {remedy}") from None


def _image(item: Mapping[str, Any]) -> ExportedImage:
    """An entry that was checked."""
    size = item["height"], item["width"], item.get("bytes")
    return ExportedImage(item["id"], item["file"], item["pixels"], item["source"], *size)


def _is_sha256(value: Any) -> bool:
    return type(value) is str and _SHA256.fullmatch(value) is not None


def _is_sha256_or_empty(value: Any) -> bool:
    return value == "" or _is_sha256(value)
