"""Labels and boxes on pictures of the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from icmbench.tasks.base import Image
from icmbench.tasks.maps import colour


def caption(image: Image, text: str) -> Image:
    """The image with a line of text in its upper left corner."""
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    _write(ImageDraw.Draw(picture), (0, 0), text, (0, 0, 0), _font(image))
    return np.asarray(picture)


def boxes(image: Image, corners: npt.NDArray[np.floating], labels: Sequence[str], classes: npt.NDArray[np.integer]) -> Image:
    """The image with labelled boxes, (n, 4) as x1, y1, x2, y2, in the colour of their class."""
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    draw, font = ImageDraw.Draw(picture), _font(image)
    for (x1, y1, x2, y2), label, index in zip(corners.tolist(), labels, classes.tolist(), strict=True):
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour(index), width=max(1, round(font.size / 6)))
        _write(draw, (x1, y1), label, colour(index), font)
    return np.asarray(picture)


def dots(image: Image, points: npt.NDArray[np.floating]) -> Image:
    """The image with dots, (n, k, 2) as x, y; each object has its own colour."""
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    draw, radius = ImageDraw.Draw(picture), max(2.0, min(image.shape[:2]) / 120)
    for index, places in enumerate(points.tolist()):
        for x, y in places:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour(index))
    return np.asarray(picture)


def _font(image: Image) -> ImageFont.FreeTypeFont:
    """Pillow's own font, one thirtieth of the shorter side."""
    return ImageFont.load_default(max(10.0, min(image.shape[:2]) / 30))  # type: ignore[return-value]


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, ground: tuple[int, int, int], font: ImageFont.FreeTypeFont
) -> None:
    x1, y1, x2, y2 = draw.textbbox(at, text, font=font)
    draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), fill=ground)
    draw.text(at, text, font=font, fill=(0, 0, 0) if sum(ground) > 384 else (255, 255, 255))
