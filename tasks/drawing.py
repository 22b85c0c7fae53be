"""Captions, boxes and points on images of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from icmbench.tasks.base import Image
from icmbench.tasks.maps import colour


def draw_caption(image: Image, text: str) -> Image:
    """The image, uint8 (height, width, 3), with a line of text in its upper left corner."""
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    _write(ImageDraw.Draw(picture), (0, 0), text, (0, 0, 0), _font(image))
    return np.asarray(picture)


def draw_boxes(image: Image, corners: npt.NDArray[np.floating], labels: Sequence[str], classes: npt.NDArray[np.integer]) -> Image:
    """The image with labelled boxes.

    Args:
        image: uint8 (height, width, 3).
        corners: (n, 4), x1, y1, x2, y2 in pixels.
        labels: n texts for the upper left corners of the boxes.
        classes: int (n,), which decides a box's colour.
    """
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    draw, font = ImageDraw.Draw(picture), _font(image)
    for (x1, y1, x2, y2), label, index in zip(corners.tolist(), labels, classes.tolist(), strict=True):
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour(index), width=max(1, round(font.size / 6)))
        _write(draw, (x1, y1), label, colour(index), font)
    return np.asarray(picture)


def draw_points(image: Image, points: npt.NDArray[np.floating]) -> Image:
    """The image with dots, one colour per object.

    Args:
        image: uint8 (height, width, 3).
        points: (n, k, 2), x, y in pixels of k points of n objects.
    """
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    draw, radius = ImageDraw.Draw(picture), max(2.0, min(image.shape[:2]) / 120)
    for index, object_points in enumerate(points.tolist()):
        for x, y in object_points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour(index))
    return np.asarray(picture)


def _font(image: Image) -> ImageFont.FreeTypeFont:
    """Pillow's built-in font, one thirtieth of the shorter side but at least 10 pixels high."""
    return ImageFont.load_default(max(10.0, min(image.shape[:2]) / 30))  # type: ignore[return-value]


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    background: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Text on a filled rectangle, black or white, whichever stands out from the background."""
    x1, y1, x2, y2 = draw.textbbox(corner, text, font=font)
    draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), fill=background)
    draw.text(corner, text, font=font, fill=(0, 0, 0) if sum(background) > 384 else (255, 255, 255))
