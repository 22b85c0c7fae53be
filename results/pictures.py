"""The page's pictures: original beside reconstruction, what the model said of both, and what was lost at how many bits.

    original, reconstruction (pixels, with and without predictions drawn) -> WebP thumbnails as data URIs -> entries, as JSON

An image entry is one image of one task; its `shown` holds the reconstruction entries of some codec points. Everything is text or
numbers, so that a run folder keeps the entries as JSON and the page is made again without images, codecs or models.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
# Pixels of a thumbnail's longer side.
MAX_SIDE = 480
# WebP quality, 0 to 100.
QUALITY = 75


def check_entries(content: Any) -> None:
    """Check what a run folder stored about pictures, so that the page can show it.

    Args:
        content: a mapping with `entries`, as `image_entry` returns them, and `left_out`, sentences.

    Raises:
        ValueError: something in it is missing or of another type.
    """
    from pydantic import ValidationError

    from icmbench.results.picture_entries import Pictures

    try:
        Pictures.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, details['loc']))}: {details['msg']}") from None


def thumbnail(image: Image) -> str:
    """An image, uint8 (height, width, 3), scaled down to `MAX_SIDE` if it is larger, as the data URI of a WebP."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def lost_and_new_names(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names that only the original has, and those that only the reconstruction has, the most frequent first.

    Args:
        before: what the model names on the original, one name per object.
        after: what it names on the reconstruction.

    Example:
        >>> lost_and_new_names(["person", "person", "person", "dog"], ["dog", "cat"])
        (['3 person'], ['cat'])
    """
    lost, new = (
        [f"{count} {name}" if count > 1 else name for name, count in difference.most_common()]
        for difference in (Counter(before) - Counter(after), Counter(after) - Counter(before))
    )
    return lost, new


def reconstruction_entry(
    facts: Mapping[str, Any], names: tuple[Sequence[str], Sequence[str]], clean: Image, drawn: Image
) -> dict[str, Any]:
    """One reconstruction of an image.

    Args:
        facts: `codec`, `point`, `bits` of the stream, `bpp`, `score` of this image alone, and `damage`, what the score lost; also
            `estimated`, true where the codec estimates its rate.
        names: what the model names on the original, and on the reconstruction.
        clean: the reconstruction, uint8 (height, width, 3).
        drawn: the same pixels with the predictions drawn on them, uint8 (height, width, 3).
    """
    lost, new = lost_and_new_names(*names)
    return _for_json(facts) | {"lost": lost, "new": new, "clean": thumbnail(clean), "drawn": thumbnail(drawn)}


def image_entry(
    facts: Mapping[str, Any], score: float, clean: Image, drawn: Image, reconstructions: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One image of one task, with its most damaged reconstruction first.

    Args:
        facts: `image`, `dataset`, `task`, `metric`, `unit`.
        score: of the original alone.
        clean: the original, uint8 (height, width, 3).
        drawn: the same pixels with the predictions drawn on them, uint8 (height, width, 3).
        reconstructions: as `reconstruction_entry` returns them, at least one.
    """
    worst_first = sorted(reconstructions, key=lambda entry: -(entry["damage"] or 0))
    numbers = {"score": score, "damage": float(np.mean([entry["damage"] or 0 for entry in worst_first]))}
    size = {"height": clean.shape[0], "width": clean.shape[1]}
    return _for_json({**facts, **numbers}) | size | {"clean": thumbnail(clean), "drawn": thumbnail(drawn), "shown": worst_first}


def _for_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN, and a page needs no more than five digits."""
    return {
        name: (float(f"{value:.5g}") if math.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in facts.items()
    }
