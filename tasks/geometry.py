"""Resizing and cropping that datasets, label maps and classifiers share."""

from __future__ import annotations

from PIL import Image as Pillow


def resize_short(picture: Pillow.Image, side: int, resample: Pillow.Resampling = Pillow.Resampling.BICUBIC) -> Pillow.Image:
    """Shorter side to `side` pixels, the longer one rounded to the nearest; unchanged where it fits already."""
    short, long = sorted(picture.size)
    if short == side:
        return picture
    other = round(side * long / short)
    size = (side, other) if picture.width <= picture.height else (other, side)
    return picture.resize(size, resample)


def centre_crop(picture: Pillow.Image, width: int, height: int) -> Pillow.Image:
    """The middle `width` x `height` pixels; the left and upper margins are rounded down."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
