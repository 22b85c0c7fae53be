"""The per-image page: original beside reconstruction, what the model said of both, and what was lost at how many bits.

    original, reconstruction (pixels, with and without predictions drawn) -> WebP thumbnails as data URIs -> entries, as JSON

An entry is one image of one task, its `shown` the reconstructions at some codec points. Everything is text or numbers, so that a
run folder keeps the entries as JSON and the page is made anew without images, codecs or models.
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
from PIL import Image as Pillow

Image = npt.NDArray[np.uint8]
SIDE = 480  # pixels of a thumbnail's longer side
QUALITY = 75


def thumbnail(image: Image) -> str:
    """An image, uint8 (height, width, 3), no larger than `SIDE`, as the data URI of a WebP."""
    picture = Pillow.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((SIDE, SIDE), Pillow.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def lost(before: Sequence[str], after: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is named on the original alone and on the reconstruction alone, `3 person` where there are several."""
    found = (Counter(before) - Counter(after), Counter(after) - Counter(before))
    gone, new = ([f"{count} {name}" if count > 1 else name for name, count in some.most_common()] for some in found)
    return gone, new


def shown(facts: Mapping[str, Any], names: tuple[Sequence[str], Sequence[str]], clean: Image, drawn: Image) -> dict[str, Any]:
    """One reconstruction of an entry.

    facts: `codec`, `point`, `bits` of the stream, `bpp`, `score` of this image alone and its `damage`, what the score lost.
    names: what the model sees on the original and on the reconstruction. clean, drawn: its pixels without and with predictions.
    """
    gone, new = lost(*names)
    return _rounded(facts) | {"lost": gone, "new": new, "clean": thumbnail(clean), "drawn": thumbnail(drawn)}


def entry(
    facts: Mapping[str, Any], score: float, clean: Image, drawn: Image, reconstructions: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """One image of one task; its most damaged reconstruction comes first.

    facts: `image`, `dataset`, `task`, `metric`, `unit`. score: of the original alone. reconstructions: as of `shown`, at least one.
    """
    order = sorted(reconstructions, key=lambda one: -(one["damage"] or 0))
    numbers = {"score": score, "damage": float(np.mean([one["damage"] or 0 for one in order]))}
    size = {"height": clean.shape[0], "width": clean.shape[1]}
    return _rounded({**facts, **numbers}) | size | {"clean": thumbnail(clean), "drawn": thumbnail(drawn), "shown": order}


def _rounded(facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN, and a page needs no more than five digits."""
    return {
        name: (float(f"{value:.5g}") if math.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in facts.items()
    }
