"""Photographs as training batches: crops, flips, texts and masks.

    position --shuffle, one epoch at a time--> photograph --resize, crop, flip--> pixels, text, mask

The sample at each position of the training order follows from the seed alone, so a killed run resumes with exactly the crops that
it would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.utils.data import Dataset

from icmbench.codecs.base import CodecError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")  # Pillow would start Ghostscript for PostScript, whatever its name.
ORIENTATION = 0x0112  # The EXIF tag.
TURNS = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


class CropDataset(Dataset[dict[str, Any]]):
    """Random crops of all photographs below a folder, by position in an endless, seeded order.

    The constructor's arguments are the keys of a recipe's `data`.

    Args:
        images: folder of photographs; the id of an image is its path below this folder.
        crop: side of the crops in pixels, a multiple of 8.
        resize: the short side is first resized to a length drawn from this range in pixels (Diff-ICMH: [512, 640]). By default,
            images keep their size, except that those smaller than `crop` are enlarged to it.
        centre: crop the centre instead of a random position.
        flip: mirror half of the crops.
        captions: JSON file {image id: caption, or a list of captions to draw from}.
        tags: JSON file {image id: [tag, ...]}, as the codecs' option of this name takes it.
        masks: folder of grey pictures <image id without suffix>.png of the photographs' sizes, 255 in the region of interest.
        labels: JSON file {image id: class index}.
        pool: number of crops that are drawn once and kept in memory, to be used in every epoch; 0 draws a new crop at every step.
        limit: use only this many images, the first in the order of their ids; by default all.
        seed: decides the order and everything that is drawn.

    Attributes:
        ids: the image ids, sorted.
        provides: which of "text", "mask" and "label" a sample has besides pixels.

    Raises:
        CodecError: a value is out of range, there is no image, or an image lacks its text, mask or label.
    """

    source: ClassVar[str] = "Put it there, or name another"  # The harness ends its error about a missing path with this sentence.

    def __init__(
        self,
        images: Path,
        *,
        crop: int = 256,
        resize: tuple[int, int] | None = None,
        centre: bool = False,
        flip: bool = True,
        captions: Path | None = None,
        tags: Path | None = None,
        masks: Path | None = None,
        labels: Path | None = None,
        pool: int = 0,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if crop < 8 or crop % 8 or pool < 0 or (resize is not None and not crop <= resize[0] <= resize[1]):
            raise CodecError("data: crop is a multiple of 8, pool from 0, resize a range from crop on")
        if captions is not None and tags is not None:
            raise CodecError("data: give captions or tags, not both")
        self.paths = {
            path.relative_to(images).as_posix(): path
            for path in sorted(images.rglob("*"))
            if path.suffix.lower() in SUFFIXES and not path.is_dir()
        }
        if stray := next((path for path in self.paths.values() if not path.is_file()), None):
            raise CodecError(f"{stray}: a broken link, or no regular file: delete it, or put the photograph itself there")
        self.paths = dict(list(self.paths.items())[:limit])
        if not self.paths:
            raise CodecError(f"there are no photographs in {images}: name a folder of {', '.join(SUFFIXES)} files")
        self.ids = list(self.paths)
        self.crop, self.resize, self.centre, self.flip, self.seed = crop, resize, centre, flip, seed
        texts = captions or tags
        self.texts = None if texts is None else _read_texts(texts, self.ids, tags is not None)
        self.masks = None if masks is None else _mask_paths(masks, self.ids)
        self.labels = None if labels is None else _read_labels(labels, self.ids)
        annotations = {"text": self.texts, "mask": self.masks, "label": self.labels}
        self.provides = {name for name, values in annotations.items() if values is not None}
        self._pool: list[dict[str, Any] | None] = [None] * pool
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))  # The epoch that was shuffled last, and its order.

    def __len__(self) -> int:
        """Number of samples in one epoch."""
        return len(self._pool) or len(self.ids)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Draw the sample at a position of the training order, which may lie beyond the first epoch.

        Returns:
            "pixels": uint8 (3, crop, crop); "text": a string, empty without texts; "mask": uint8 (1, crop, crop), if there are
            masks; "label": a class index, if there are labels; "slot": the crop's index in the pool, or -1 without a pool.
        """
        epoch, offset = divmod(position, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self)))
        index = int(self._order[1][offset])
        if not self._pool:
            return self._draw(index, np.random.default_rng([self.seed, 1, position]), -1)
        return self.slot(index)

    def slot(self, number: int) -> dict[str, Any]:
        """The crop at one index of the pool, as `__getitem__` returns it; it is drawn at the first call."""
        sample = self._pool[number]
        if sample is None:
            rng = np.random.default_rng([self.seed, 2, number])
            sample = self._pool[number] = self._draw(number % len(self.ids), rng, number)
        return sample

    def _draw(self, index: int, rng: np.random.Generator, slot: int) -> dict[str, Any]:
        image_id = self.ids[index]
        photo = _open_picture(self.paths[image_id], "RGB")
        mask = None if self.masks is None else _open_picture(self.masks[image_id], "L")
        if mask is not None and mask.size != photo.size:
            raise CodecError(f"{self.masks and self.masks[image_id]}: a mask is as large as its photograph, {photo.size}")
        short = int(rng.integers(self.resize[0], self.resize[1] + 1)) if self.resize else max(self.crop, min(photo.size))
        scale = short / min(photo.size)
        if scale != 1:
            size = (max(self.crop, round(photo.width * scale)), max(self.crop, round(photo.height * scale)))
            photo = photo.resize(size, Pillow.Resampling.BICUBIC)
            mask = mask and mask.resize(size, Pillow.Resampling.BILINEAR)
        margins = [side - self.crop for side in photo.size]
        left, top = (margin // 2 if self.centre else int(rng.integers(0, margin + 1)) for margin in margins)
        box, mirrored = (left, top, left + self.crop, top + self.crop), self.flip and rng.random() < 0.5
        sample: dict[str, Any] = {"pixels": _to_tensor(photo.crop(box), mirrored), "slot": slot, "text": ""}
        if mask is not None:
            sample["mask"] = _to_tensor(mask.crop(box), mirrored)
        if self.labels is not None:
            sample["label"] = self.labels[image_id]
        if self.texts is not None:
            choices = self.texts[image_id]
            sample["text"] = choices[int(rng.integers(len(choices)))]
        return sample


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join B samples of a `CropDataset` into a batch.

    Returns:
        "pixels": uint8 (B, 3, H, W); "text": B strings; "slot", and "label" if there are labels: int64 (B,); "mask", if there are
        masks: uint8 (B, 1, H, W).
    """
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {
        key: torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values) if key in ("slot", "label") else values
        for key, values in batch.items()
    }


def _open_picture(path: Path, mode: str) -> Pillow.Image:
    """A picture, upright. Only its orientation is read of its metadata: other tags of an odd type would stop Pillow's own turn."""
    try:
        with Pillow.open(path, formats=FORMATS) as picture:
            picture.load()
            orientation = picture.getexif().get(ORIENTATION)
            upright = picture.convert(mode)
        turn = TURNS.get(orientation) if isinstance(orientation, int) else None
        return upright if turn is None else upright.transpose(turn)
    except Exception as error:  # Pillow's decoders raise a dozen types on bad files.
        raise CodecError(f"{path} cannot be read as a picture ({error}): replace it or take it out of the folder") from error


def _to_tensor(picture: Pillow.Image, mirrored: bool) -> Tensor:
    """A picture of C bands as uint8 (C, H, W)."""
    values = np.atleast_3d(np.asarray(picture))[:, :: -1 if mirrored else 1]
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _read_texts(path: Path, ids: Sequence[str], tags: bool) -> dict[str, list[str]]:
    """The prompts to draw from, by image id; all tags of an image make one prompt."""
    content = _read_json(path, ids, "text")
    prompts = {}
    for image_id in ids:
        value = content[image_id]
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise CodecError(f"{path}: the text of {image_id} is a string or a list of strings")
        prompts[image_id] = [", ".join(texts)] if tags else texts or [""]
    return prompts


def _read_labels(path: Path, ids: Sequence[str]) -> dict[str, int]:
    content = _read_json(path, ids, "class index")
    if wrong := [image_id for image_id in ids if type(content[image_id]) is not int or content[image_id] < 0]:
        raise CodecError(f"{path}: the class index of {wrong[0]} is a number from 0")
    return {image_id: content[image_id] for image_id in ids}


def _read_json(path: Path, ids: Sequence[str], value_name: str) -> dict[str, Any]:
    """Read a JSON object that has a value for every image id; errors call such a value `value_name`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CodecError(f"{path} cannot be read as JSON ({error}): write {{image id: {value_name}}}") from error
    if not isinstance(content, dict):
        raise CodecError(f"{path}: write {{image id: {value_name}}}")
    if missing := [image_id for image_id in ids if image_id not in content]:
        raise CodecError(f"{path} has no {value_name} for {len(missing)} images, such as {missing[0]}: add them")
    return content


def _mask_paths(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    paths = {image_id: (folder / image_id).with_suffix(".png") for image_id in ids}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise CodecError(f"{len(missing)} masks are missing, such as {missing[0]}: write one for every photograph")
    return paths
