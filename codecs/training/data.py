"""Photographs as training batches: crops, flips, text and masks. What position n of the order holds follows from the seed alone, so
that a killed run goes on with just the crops it would have seen.

    position --shuffle, an epoch at a time--> photograph --resize, crop, flip--> pixels, text, mask
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from icmbench.codecs.base import CodecError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


class Crops(Dataset[dict[str, Any]]):
    """Crops of all photographs below a folder.

    images: the folder; an image's id is its path below it. crop: sides in pixels. resize: the short side is first resized to a
    length drawn from this range (Diff-ICMH: [512, 640]); else images keep their size, and those below `crop` are enlarged to it.
    centre: crop in the middle, not at a place drawn. flip: mirror half of them. captions: JSON {image id: caption, or a list to
    draw from}. tags: JSON {image id: [tag, ...]}, as in the codecs' option. masks: a folder of grey pictures <image id without
    suffix>.png of the photographs' sizes, 255 for the region of interest. labels: JSON {image id: class index}. pool: draw only so
    many crops and keep them in memory; 0 for a fresh one at every step. limit: only the first images. seed: of all that is drawn.
    CodecError where there is no image, or one without its text, mask or label.
    """

    source: ClassVar[str] = "Put it there, or name another"  # the end of a sentence on what is missing

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
            path.relative_to(images).as_posix(): path for path in sorted(images.rglob("*")) if path.suffix.lower() in SUFFIXES
        }
        self.paths = dict(list(self.paths.items())[:limit])
        if not self.paths:
            raise CodecError(f"there are no photographs in {images}: name a folder of {', '.join(SUFFIXES)} files")
        self.ids = list(self.paths)
        self.crop, self.resize, self.centre, self.flip, self.seed = crop, resize, centre, flip, seed
        texts = captions or tags
        self.texts = None if texts is None else _texts(texts, self.ids, tags is not None)
        self.masks = None if masks is None else _masks(masks, self.ids)
        self.labels = None if labels is None else _labels(labels, self.ids)
        found = {"text": self.texts, "mask": self.masks, "label": self.labels}
        self.brings = {kind for kind, values in found.items() if values is not None}
        self._pool: list[dict[str, Any] | None] = [None] * pool
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __len__(self) -> int:
        """Of an epoch."""
        return len(self._pool) or len(self.ids)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """pixels uint8 (3, crop, crop); text; mask uint8 (1, crop, crop) if there are masks; slot: place in the pool, or -1."""
        epoch, place = divmod(position, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 0, epoch]).permutation(len(self)))
        chosen = int(self._order[1][place])
        if not self._pool:
            return self._draw(chosen, np.random.default_rng([self.seed, 1, position]), -1)
        return self.slot(chosen)

    def slot(self, number: int) -> dict[str, Any]:
        """The crop in one place of the pool."""
        kept = self._pool[number]
        if kept is None:
            rng = np.random.default_rng([self.seed, 2, number])
            kept = self._pool[number] = self._draw(number % len(self.ids), rng, number)
        return kept

    def _draw(self, index: int, rng: np.random.Generator, slot: int) -> dict[str, Any]:
        image_id = self.ids[index]
        photo = _open(self.paths[image_id], "RGB")
        mask = None if self.masks is None else _open(self.masks[image_id], "L")
        if mask is not None and mask.size != photo.size:
            raise CodecError(f"{self.masks and self.masks[image_id]}: a mask is as large as its photograph, {photo.size}")
        short = int(rng.integers(self.resize[0], self.resize[1] + 1)) if self.resize else max(self.crop, min(photo.size))
        scale = short / min(photo.size)
        if scale != 1:
            size = (max(self.crop, round(photo.width * scale)), max(self.crop, round(photo.height * scale)))
            photo = photo.resize(size, Pillow.Resampling.BICUBIC)
            mask = mask and mask.resize(size, Pillow.Resampling.BILINEAR)
        places = [side - self.crop for side in photo.size]
        left, top = (place // 2 if self.centre else int(rng.integers(0, place + 1)) for place in places)
        box, mirrored = (left, top, left + self.crop, top + self.crop), self.flip and rng.random() < 0.5
        sample: dict[str, Any] = {"pixels": _tensor(photo.crop(box), mirrored), "slot": slot, "text": ""}
        if mask is not None:
            sample["mask"] = _tensor(mask.crop(box), mirrored)
        if self.labels is not None:
            sample["label"] = self.labels[image_id]
        if self.texts is not None:
            choices = self.texts[image_id]
            sample["text"] = choices[int(rng.integers(len(choices)))]
        return sample


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """pixels uint8 (B, 3, H, W), text B strings, slot and label int64 (B,), mask uint8 (B, 1, H, W)."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {
        key: torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values) if key in ("slot", "label") else values
        for key, values in batch.items()
    }


def _open(path: Path, mode: str) -> Pillow.Image:
    try:
        with Pillow.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert(mode)
    except (OSError, ValueError) as error:
        raise CodecError(f"{path} cannot be read as a picture ({error}): replace it or take it out of the folder") from error


def _tensor(picture: Pillow.Image, mirrored: bool) -> Tensor:
    values = np.atleast_3d(np.asarray(picture))[:, :: -1 if mirrored else 1]
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _texts(path: Path, ids: Sequence[str], tags: bool) -> dict[str, list[str]]:
    """The prompts to draw from, by image id."""
    content = _content(path, ids, "text")
    found = {}
    for image_id in ids:
        value = content[image_id]
        choices = [value] if isinstance(value, str) else value
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise CodecError(f"{path}: the text of {image_id} is a string or a list of strings")
        found[image_id] = [", ".join(choices)] if tags else choices or [""]
    return found


def _labels(path: Path, ids: Sequence[str]) -> dict[str, int]:
    content = _content(path, ids, "class index")
    if wrong := [image_id for image_id in ids if type(content[image_id]) is not int or content[image_id] < 0]:
        raise CodecError(f"{path}: the class index of {wrong[0]} is a number from 0")
    return {image_id: content[image_id] for image_id in ids}


def _content(path: Path, ids: Sequence[str], what: str) -> dict[str, Any]:
    """A JSON file with something of every image."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CodecError(f"{path} cannot be read as JSON ({error}): write {{image id: {what}}}") from error
    if not isinstance(content, dict):
        raise CodecError(f"{path}: write {{image id: {what}}}")
    if missing := [image_id for image_id in ids if image_id not in content]:
        raise CodecError(f"{path} has no {what} for {len(missing)} images, such as {missing[0]}: add them")
    return content


def _masks(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    paths = {image_id: (folder / image_id).with_suffix(".png") for image_id in ids}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise CodecError(f"{len(missing)} masks are missing, such as {missing[0]}: write one for every photograph")
    return paths
