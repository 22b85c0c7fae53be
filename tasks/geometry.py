"""Resizing and cropping that datasets and classifiers share."""

from __future__ import annotations

from PIL import Image as Pillow


def resize_short(picture: Pillow.Image, side: int, resample: Pillow.Resampling = Pillow.Resampling.BICUBIC) -> Pillow.Image:
    """Resize the shorter side to `side` pixels and keep the aspect ratio.

    Args:
        picture: any picture.
        side: pixels of the shorter side. The longer side is rounded to the nearest pixel.
        resample: Pillow's filter.

    Returns:
        The resized picture; the same object if its shorter side already fits.
    """
    short, long = sorted(picture.size)
    if short == side:
        return picture
    longer_side = round(side * long / short)
    size = (side, longer_side) if picture.width <= picture.height else (longer_side, side)
    return picture.resize(size, resample)


def centre_crop(picture: Pillow.Image, width: int, height: int) -> Pillow.Image:
    """The middle `width` x `height` pixels. If the margins are odd, the left and upper ones are the smaller."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
