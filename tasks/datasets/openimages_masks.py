"""The masks of Open Images: a table with one row a mask, which says to which box it belongs, and the masks themselves.

    table as published   MaskPath, ImageID, LabelName, BoxXMin, ...      masks in PNG files (`mask_folder`)
    table of MPEG VCM    ImageID, LabelName, ImageWidth, ..., XMin, ..., masks in the column `Mask`, or in the PNG files
                         IsGroupOf, Mask, MaskPath

Rows name no box by an id that the table of boxes has. A mask belongs to the box of its image and class with the same coordinates,
which these tables round to 6 decimals. The column `Mask` is base64 of zlib of COCO's compressed run lengths.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from icmbench.tasks.base import DatasetError
from icmbench.tasks.datasets.images import path_inside, printable_name
from icmbench.tasks.datasets.lists import SEPARATORS, read_text
from icmbench.tasks.datasets.openimages_tables import EDGES, BoxTable, Columns, Vocabulary, rows_of_images, shares
from icmbench.tasks.datasets.segmentations import run_length_problem
from icmbench.tasks.datasets.sizes import read_map_header

TOLERANCE = 1.5e-6  # Between a coordinate and itself rounded to 6 decimals, either way of rounding a half.
LARGEST_COUNTS = 1 << 24  # Bytes of the run lengths of one mask.
PUBLISHED_EDGES = tuple(f"Box{edge}" for edge in EDGES)


@dataclass(frozen=True)
class StoredMask:
    """A mask as its table gives it.

    Attributes:
        file: the table.
        line: its line.
        size: height and width in pixels that the table states; None if it states none.
        content: the field `Mask`, or the PNG file.
    """

    file: Path
    line: int
    size: tuple[int, int] | None
    content: str | Path
    _decoded: dict[tuple[int, int], dict[str, Any] | None] = field(default_factory=dict, compare=False, repr=False)

    def run_lengths(self, size: tuple[int, int]) -> dict[str, Any] | None:
        """The mask as COCO's run lengths, `{"size": [height, width], "counts": bytes}`; None if it has no pixel.

        A PNG of another size than the photograph, as many published ones are, is resized to it: each pixel takes the sample at
        its own centre.

        Args:
            size: height and width of the photograph in pixels.

        Raises:
            DatasetError: the mask is damaged, or its table states another size.
        """
        if size not in self._decoded:
            self._decoded[size] = self._decode(size)
        return self._decoded[size]

    def _decode(self, size: tuple[int, int]) -> dict[str, Any] | None:
        if isinstance(self.content, Path):
            return _from_png(self.content, size)
        where = f"{self.file}: line {self.line}"
        if self.size is not None and self.size != size:
            raise DatasetError(
                f"{where}: `ImageWidth` and `ImageHeight` are {self.size[1]}x{self.size[0]}, its photograph has "
                f"{size[1]}x{size[0]} pixels; give the photographs that were annotated"
            )
        counts = _counts(where, self.content)
        mask = {"size": list(size), "counts": counts}
        if wrong := run_length_problem(mask, *size):
            raise DatasetError(f"{where}: the mask {wrong}; give the masks of these photographs")
        from pycocotools.mask import area

        return mask if area(mask) else None


def _counts(where: str, text: str) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        counts = unpacker.decompress(base64.b64decode(text, validate=True), LARGEST_COUNTS)
        if not unpacker.eof:
            raise ValueError("it is cut off, or too long")
    except (binascii.Error, zlib.error, ValueError) as error:
        raise DatasetError(f"{where}: `Mask` is no base64 of compressed run lengths ({error}); download the file again") from None
    return counts


def _from_png(path: Path, size: tuple[int, int]) -> dict[str, Any] | None:
    from PIL import Image as Pillow
    from pycocotools.mask import encode

    try:
        with Pillow.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("1", "L", "P"):
                raise ValueError(f"its mode is {picture.mode}, not one sample of 8 bits or less a pixel")
            samples = np.asarray(picture.convert("L") if picture.mode == "1" else picture)
    except Exception as error:  # Pillow's decoders raise a dozen types on bad files.
        raise DatasetError(f"{path}: damaged or no mask ({error}); download it again") from None
    levels = np.flatnonzero(np.bincount(samples.ravel(), minlength=256))
    if not {0, 255}.issuperset(levels.tolist()) and not {0, 1}.issuperset(levels.tolist()):
        raise DatasetError(
            f"{path}: a mask has the samples 0 and 255 (or 0 and 1), and this one has {levels[:4].tolist()}; "
            "give the published masks"
        )
    if samples.shape != size:
        rows, columns = (
            ((2 * np.arange(wanted) + 1) * stored) // (2 * wanted) for wanted, stored in zip(size, samples.shape, strict=True)
        )
        samples = samples[rows[:, None], columns]
    if not samples.any():
        return None
    mask = encode(np.asfortranarray(samples > 0, dtype=np.uint8))
    return {"size": list(size), "counts": bytes(mask["counts"])}


def read_masks(
    file: Path, folder: Path | None, positions: Mapping[str, int], vocabulary: Vocabulary, boxes: BoxTable, box_file: Path
) -> list[StoredMask | None]:
    """The mask of each box, None where it has none.

    Args:
        file: the table of masks.
        folder: the folder of PNG files; None takes the column `Mask`.
        positions: positions of the images by ImageID.
        vocabulary: the classes.
        boxes: the boxes.
        box_file: their table, for messages.

    Raises:
        DatasetError: a column is missing, an id, number or flag is wrong, a mask belongs to no box or to one that has a mask, a PNG
            file is missing or named twice, or no mask is of these images.
    """
    header = read_text(file).partition("\n")[0].strip()
    names = [name.strip().strip('"') for name in header.split(max(SEPARATORS, key=header.count))]
    is_published = "BoxXMin" in names
    if folder is None and (is_published or "Mask" not in names):
        raise DatasetError(f"{file}: has no column `Mask`, so that the masks are in PNG files; name their folder as `mask_folder`")
    edges = PUBLISHED_EDGES if is_published else EDGES
    more = [] if is_published else ["ImageWidth", "ImageHeight", "IsGroupOf"]
    content = "Mask" if folder is None else "MaskPath"
    columns, image_of = rows_of_images(Columns.read(file, ["ImageID", "LabelName", *edges, *more, content]), positions)
    if not len(columns):
        raise DatasetError(
            f"{file}: none of its masks is of one of the dataset's {len(positions)} images; give the masks of these images, or a "
            "higher `limit`"
        )
    matched = _boxes_of_masks(
        columns, image_of, vocabulary.indices(columns), shares(columns, edges), boxes, box_file, not is_published
    )
    sizes = None if is_published else _stated_sizes(columns)
    paths = None if folder is None else _png_files(columns, folder)
    masks: list[StoredMask | None] = [None] * len(boxes.lines)
    for row, box in enumerate(matched):
        text = columns.texts[content][row]
        if box is not None and (paths is not None or text not in ("", "nan")):
            stated = None if sizes is None else sizes[row]
            masks[box] = StoredMask(file, columns.lines[row], stated, text if paths is None else paths[row])
    return masks


def _stated_sizes(columns: Columns) -> list[tuple[int, int]]:
    """Height and width that each row states."""
    sides = [
        columns.numbers(name, "a whole number of pixels", lambda values: (values >= 1) & (np.rint(values) == values)).astype(int)
        for name in ("ImageHeight", "ImageWidth")
    ]
    return [*zip(*(side.tolist() for side in sides))]


def _boxes_of_masks(
    columns: Columns,
    image_of: npt.NDArray[np.int64],
    category: npt.NDArray[np.int64],
    corners: npt.NDArray[np.float64],
    boxes: BoxTable,
    box_file: Path,
    states_groups: bool,
) -> list[int | None]:
    """The box that each mask belongs to, as its place in the table of boxes; None for a class that is left out."""
    by_key: dict[tuple[int, int], list[int]] = {}
    for box, key in enumerate(zip(boxes.image.tolist(), boxes.category.tolist())):
        by_key.setdefault(key, []).append(box)
    group = columns.flags("IsGroupOf") if states_groups else None
    taken: dict[int, int] = {}
    matched: list[int | None] = []
    for row, key in enumerate(zip(image_of.tolist(), category.tolist())):
        if key[1] < 0:
            matched.append(None)
            continue
        near = np.array(by_key.get(key, []), np.int64)
        distance = np.abs(boxes.corners[near] - corners[row]).max(axis=1, initial=0.0)
        near = near[np.argsort(distance, kind="stable")][: int((distance <= TOLERANCE).sum())]
        fitting = near if group is None else near[boxes.group[near] == group[row]]
        free = [box for box in fitting.tolist() if box not in taken]
        if not free:
            raise _refuse_mask(columns, row, near.tolist(), fitting.tolist(), taken, boxes, box_file)
        taken[free[0]] = row
        matched.append(free[0])
    return matched


def _refuse_mask(
    columns: Columns,
    row: int,
    near: Sequence[int],
    fitting: Sequence[int],
    taken: Mapping[int, int],
    boxes: BoxTable,
    box_file: Path,
) -> DatasetError:
    where = (
        f"{columns.file}: line {columns.lines[row]} (image {columns.texts['ImageID'][row]!r}, {columns.texts['LabelName'][row]!r})"
    )
    if fitting:
        other = columns.lines[taken[fitting[0]]]
        return DatasetError(f"{where}: its box has a mask already, in line {other}; remove one of them")
    if near:
        return DatasetError(
            f"{where}: `IsGroupOf` is another one than that of its box, line {boxes.lines[near[0]]} of {box_file}; "
            "correct one of them"
        )
    return DatasetError(
        f"{where}: {box_file} has no box of this image and class with these coordinates; give the boxes of these masks"
    )


def _png_files(columns: Columns, folder: Path) -> list[Path]:
    """The PNG of each row: in the folder, or in its subfolder named by the first character, as the archives are divided."""
    files: list[Path] = []
    lines: dict[str, int] = {}
    for line, name in zip(columns.lines, columns.texts["MaskPath"]):
        where = f"{columns.file}: line {line}"
        if lines.setdefault(name, line) != line:
            raise DatasetError(f"{where} names the mask {printable_name(name)!r} again, after line {lines[name]}; correct the file")
        try:
            candidates = [path_inside(folder, part + name) for part in ("", f"{name[:1].upper()}/", f"{name[:1].lower()}/")]
        except ValueError as error:
            raise DatasetError(f"{where}: {error}; correct the file") from None
        path = next((candidate for candidate in candidates if name and candidate.is_file()), None)
        if path is None:
            raise DatasetError(f"{where}: the folder {folder} has no mask {printable_name(name)!r}; complete the folder")
        read_map_header(path, str(path))
        files.append(path)
    return files
