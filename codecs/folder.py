"""Reconstructions made elsewhere and a CSV of their sizes, named in the experiment file; no code is needed.

    codecs:
      - name: folder                                reconstructions/32/000000000139.png
        label: vvc                                  reconstructions/37/000000000139.png
        points: [32, 37]                            sizes.csv:  image,point,bytes
        set:                                                    000000000139.jpg,32,5120
          path: reconstructions
          sizes: sizes.csv

A stream is a token here, which names a file and declares its size. Only this codec with the same folder decodes it.
"""

from __future__ import annotations

import csv
import json
import math
import posixpath
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as Pillow

from icmbench.codecs.base import BitstreamError, CodecError, Image, ParameterValue, RatePoint, file_sha256, fingerprint
from icmbench.codecs.checks import check_pixel_count

_FORMATS = {".png": "PNG", ".ppm": "PPM", ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
_MAX_BYTES = 1 << 40  # of one image: above any that can be read here
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}  # Pillow's names of compressions
_EXACT_MODES = {"RGB", "L", "P", "1"}  # Converting these modes of Pillow to RGB changes no pixel.


class Folder:
    """Reconstructions made elsewhere, and a CSV of their sizes.

    Points are sorted by their mean declared size. The fingerprint says no more than the point's label, because every image has a
    file and a row of its own, which `facts` tells. Two folders with a point of one label therefore share a fingerprint, and only
    facts tell their images apart.

    Args:
        point: A number, a word or a mapping such as {qp: 32}. Its label, `32` or `qp=32`, names the folder below `path` and stands
            in the CSV's column `point`.
        path: Folder that holds `<label>/<image>.<png|ppm|bmp|webp|tif>`, lossless. `<image>` is the image's file name relative to
            the dataset's folder, such as `n01440764/x.JPEG`, with or without its own suffix.
        sizes: CSV with the columns `image`, `point` and either `bytes` or `bits` (rounded up to bytes), the size of the real
            stream.

    Raises:
        CodecError: the folder or the CSV is missing, wrong or empty at this point.
    """

    name = "folder"
    version = 1  # Raised by hand when pixels or sizes change for the same files.
    background = True

    def __init__(self, point: ParameterValue | Mapping[str, ParameterValue], *, path: Path, sizes: Path) -> None:
        label = _folder_name(point)
        self._path, self._sizes = Path(path), Path(sizes)
        self._folder = self._path / label
        names = _list_files(self._path, label)
        self._files = frozenset(names)
        self._rows = _read_rows(self._sizes, label)
        parameters = dict(point) if isinstance(point, Mapping) else {"point": point}
        self.point = RatePoint(label, sum(row.bytes for row in self._rows.values()) / len(self._rows), parameters)
        self._files_by_stem = _group_by_stem(names)
        self._rows_by_stem = _group_by_stem(self._rows)
        self.fingerprint = fingerprint(codec=self.name, version=self.version, point=label)

    def facts(self, image_id: str) -> dict[str, Any]:
        """What decides an image's token and its reconstruction.

        A file is read once in a process while its size and modification time stay the same.

        Returns:
            `file`, the name of the reconstruction below the point's folder; `sha256` of its content; `bytes`, the declared size.
            None stands for what is missing or ambiguous, which `compress_batch` then names.
        """
        facts: dict[str, Any] = {"file": None, "sha256": None, "bytes": None}
        with suppress(CodecError, OSError):
            facts["file"] = self._find_file(image_id)
            facts["sha256"] = file_sha256(self._folder / facts["file"])
        with suppress(CodecError):
            facts["bytes"] = self._find_row(image_id).bytes
        return facts

    def compress(self, image: Image) -> bytes:
        """Always raises CodecError, because pixels alone do not tell which reconstruction is meant."""
        raise CodecError("folder: it only knows images of a dataset, by their ids: use it in an experiment")

    def compress_batch(self, images: Sequence[Image], ids: Sequence[str]) -> list[bytes]:
        """One token per image.

        Args:
            images: The images as they are coded, uint8 RGB (height, width, 3) each.
            ids: Their ids, in the same order.

        Raises:
            CodecError: a file or row is missing, or a file is not lossless or not as large as its image.
        """
        return [self._token(image, image_id) for image, image_id in zip(images, ids, strict=True)]

    def stream_bytes(self, data: bytes) -> int:
        """The declared size, in bytes, of the stream that a token stands for.

        Raises:
            BitstreamError: the bytes are no token of this point.
        """
        return self._parse(data).bytes

    def decompress(self, data: bytes) -> Image:
        """The reconstruction that a token names, uint8 RGB (height, width, 3).

        Raises:
            BitstreamError: the bytes are no token of this point, or its file cannot be read.
        """
        name = self._parse(data).file
        try:
            with _open_lossless(self._folder / name) as picture:
                return np.array(picture.convert("RGB"))
        except Exception as error:  # Pillow raises a dozen types on bad files.
            raise BitstreamError(f"folder: {self._folder / name} cannot be read: {error}") from error

    def _token(self, image: Image, image_id: str) -> bytes:
        name, row = self._find_file(image_id), self._find_row(image_id)
        height, width = image.shape[:2]
        file = self._folder / name
        try:
            with _open_lossless(file) as picture:
                size = picture.size
        except Exception as error:  # Pillow raises a dozen types on bad files.
            raise CodecError(f"folder: {file} is no lossless 8-bit image: {error}") from error
        if size != (width, height):
            raise CodecError(f"folder: {file} is {size[0]}x{size[1]}, but the image {image_id!r} is coded at {width}x{height}")
        body = json.dumps({"bytes": row.bytes, "file": f"{self.point.label}/{name}"}, separators=(",", ":")).encode()
        return b"%08x" % zlib.crc32(body) + body

    def _parse(self, data: bytes) -> _Token:
        """The fields of a token of this point. Only listed files pass, so no token can name a file outside the folder."""
        if data[:8] != b"%08x" % zlib.crc32(data[8:]):
            raise BitstreamError(f"folder: not a token of this codec, or an altered one ({len(data)} bytes)")
        try:
            fields = json.loads(data[8:])
            label, _, name = fields["file"].partition("/")
            token = _Token(name, int(fields["bytes"]))
        except Exception as error:  # A forged checksum may cover any bytes.
            raise BitstreamError(f"folder: not a token of this codec: {error!r}") from error
        if label != self.point.label or name not in self._files or token.bytes < 1:
            raise BitstreamError(f"folder: {fields['file']!r} is no reconstruction of point {self.point.label!r} in {self._path}")
        return token

    def _find_file(self, image_id: str) -> str:
        if image_id in self._files:
            return image_id
        for stem in (image_id, _without_suffix(image_id)):
            names = self._files_by_stem.get(stem, [])
            if len(names) > 1:
                raise CodecError(f"folder: {' and '.join(names)} in {self._folder} both fit {image_id!r}: keep one")
            if names:
                return names[0]
        expected = self._folder / f"{_without_suffix(image_id)}.png"
        raise CodecError(f"folder: no reconstruction of {image_id!r} at point {self.point.label!r}: put it at {expected}")

    def _find_row(self, image_id: str) -> _Row:
        for name in (image_id, _without_suffix(image_id)):
            if name in self._rows:
                return self._rows[name]
        names = self._rows_by_stem.get(_without_suffix(image_id), [])
        if len(names) > 1:
            lines = " and ".join(str(self._rows[name].line) for name in names)
            raise CodecError(f"folder: rows {lines} of {self._sizes} both fit {image_id!r}: give the image's full name")
        if not names:
            raise CodecError(f"folder: {self._sizes} has no row of image {image_id!r} at point {self.point.label!r}: add its size")
        return self._rows[names[0]]


class _Token(NamedTuple):
    file: str  # relative to the point's folder
    bytes: int  # declared size


@dataclass(frozen=True)
class _Row:
    line: int  # of the CSV, from 1
    bytes: int  # declared size


def _folder_name(point: ParameterValue | Mapping[str, ParameterValue]) -> str:
    """The label of a rate point, which is also the name of its folder."""
    if isinstance(point, Mapping):
        label = ",".join(f"{name}={value}" for name, value in point.items())
    elif isinstance(point, (int, float)) and not isinstance(point, bool):
        label = f"{point:g}"
    else:
        label = str(point)
    if isinstance(point, bool) or label in {"", ".", ".."} or "/" in label or "\\" in label:
        raise CodecError(f"folder: a point names a folder, which {point!r} cannot")
    return label


def _list_files(path: Path, label: str) -> list[str]:
    """A point's images, by their path relative to its folder with forward slashes."""
    folder = path / label
    if not folder.is_dir():
        siblings = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
        hint = f"; in {path} there are: {', '.join(siblings[:10])}" if siblings else ""
        raise CodecError(f"folder: no folder {folder} with the reconstructions of point {label!r}{hint}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _FORMATS and file.is_file())
    if not files:
        raise CodecError(f"folder: {folder} holds no {', '.join(_FORMATS)} files: put the reconstructions of point {label!r} there")
    return [file.relative_to(folder).as_posix() for file in files]


def _read_rows(path: Path, label: str) -> dict[str, _Row]:
    """This point's rows by image. Rows of other points are checked, too."""
    if path.exists() and not path.is_file():
        raise CodecError(f"folder: the sizes {path} cannot be read: no regular file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            units = [unit for unit in ("bytes", "bits") if unit in columns]
            if columns.count("image") != 1 or columns.count("point") != 1 or sum(map(columns.count, ("bytes", "bits"))) != 1:
                raise CodecError(
                    f"folder: {path} needs the columns image, point and either bytes or bits, separated by commas and each of them "
                    f"once; it has {', '.join(columns)}"
                )
            points: dict[float | str, dict[str, _Row]] = {}
            for row in filter(None, reader):
                position = f"folder: {path}, row {reader.line_num}"
                fields = _fields(row, columns, position)
                image, point, size = (fields[column] for column in ("image", "point", units[0]))
                if not image or not point:
                    raise CodecError(f"{position}: its image or its point is empty")
                rows = points.setdefault(_point_key(point), {})
                if image in rows:
                    raise CodecError(f"{position}: image {image!r} at point {point!r} stands in row {rows[image].line} already")
                rows[image] = _Row(reader.line_num, _parse_size(size, units[0], position))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CodecError(f"folder: the sizes {path} cannot be read: {error}") from error
    if _point_key(label) not in points:
        known = ", ".join(f"{key:g}" if isinstance(key, float) else key for key in points)
        raise CodecError(f"folder: {path} has no row of point {label!r}; it has {known or 'no rows at all'}")
    return points[_point_key(label)]


def _fields(row: Sequence[str], columns: Sequence[str], position: str) -> dict[str, str]:
    """The fields of a row by their columns, without blanks around them."""
    # A column without a name is an index in front, or what a trailing comma makes; else a number was cut at a decimal comma.
    unnamed = any(field.strip() for column, field in zip(columns[1:], row[1:], strict=False) if not column)
    if len(row) != len(columns) or unnamed:
        raise CodecError(
            f"{position}: {len(row)} fields under {len([*filter(None, columns)])} named columns: write one field per column, "
            "numbers with a point and without thousands separators, and names that hold a separator in quotes"
        )
    return {column: field.strip() for column, field in zip(columns, row, strict=True)}


def _parse_size(text: str, unit: str, position: str) -> int:
    """A size in bytes. `position` tells the file and row in error messages."""
    # `1.000` may be a thousand in digits grouped by points, but `1000.0` is how a table of floats writes that number.
    size = float(text) if re.fullmatch(r"\d+(\.0)?|\d+(\.\d+)?[eE]\+?\d{1,2}", text, re.ASCII) else math.nan
    if not (size > 0 and size.is_integer()):
        raise CodecError(f"{position}: {unit} is a whole number above 0, not {text!r}")
    if size > _MAX_BYTES:
        raise CodecError(f"{position}: {unit} is at most {_MAX_BYTES}, not {text!r}: correct the size")
    return math.ceil(size / 8) if unit == "bits" else int(size)


def _point_key(point: str) -> float | str:
    """What a point's label stands for: `32`, `32.0` and `032` are the same point."""
    try:
        number = float(point) if point.isascii() and "_" not in point else math.nan  # Python reads 3_2, and digits of any script.
    except ValueError:
        return point
    return number if math.isfinite(number) else point


def _without_suffix(name: str) -> str:
    return posixpath.splitext(name)[0]


def _group_by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_without_suffix(name), []).append(name)
    return stems


@contextmanager
def _open_lossless(file: Path) -> Iterator[Pillow.Image]:
    """An image file whose header is read. Raises ValueError, or any error of Pillow, unless it is one lossless 8-bit image."""
    if not file.is_file() and file.exists():
        raise ValueError("it is no regular file")
    with Pillow.open(file, formats=[_FORMATS[file.suffix.lower()]]) as picture:
        if picture.info.get("compression") in _LOSSY_TIFF if picture.format == "TIFF" else _is_lossy_webp(file):
            raise ValueError("it is compressed with loss, which would count as the codec's own")
        check_pixel_count(*picture.size)
        if picture.mode not in _EXACT_MODES:
            raise ValueError(f"its pixels are {picture.mode}, not 8-bit RGB")
        if getattr(picture, "n_frames", 1) != 1:
            raise ValueError("it holds several pictures")
        yield picture


def _is_lossy_webp(file: Path) -> bool:
    if file.suffix.lower() != ".webp":
        return False
    data = file.read_bytes()
    position = 12  # after "RIFF", the size and "WEBP"
    while position + 8 <= len(data):
        chunk, length = struct.unpack_from("<4sI", data, position)
        if chunk == b"VP8 ":
            return True
        position += 8 + length + length % 2
    return False
