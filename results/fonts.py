"""Names in figures, whatever their script: drawn with a font that has their characters, otherwise written as code points.

    a user's name --printable--> one line --drawable--> characters that an installed font has, others as [U+65E5]
    a figure --use_fonts--> texts beyond DejaVu Sans get the installed fonts that have their characters

DejaVu Sans comes with matplotlib, so that figures of Latin, Greek and Cyrillic names are equal on every machine. What is beyond it
depends on the fonts of the machine. A figure for a page keeps its names as text, for which the browser has fonts.
"""

from __future__ import annotations

import functools
import itertools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib import font_manager
    from matplotlib.figure import Figure

FAMILY = "DejaVu Sans"
# Characters of a text in print; a longer one would leave no room for the curves.
MAX_LENGTH = 200
# Fonts for many scripts, or for Chinese, Japanese and Korean, or for symbols, the better ones first. Others are tried after these.
WIDE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Source Han Sans SC", "Noto Sans", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
    "IPAGothic", "Arial Unicode MS", "Noto Emoji", "Symbola", "Segoe UI Symbol", "Unifont",
)  # fmt: skip


def printable(text: str) -> str:
    """A user's text on one line, without the control characters that SVG cannot hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def drawable(text: str) -> str:
    """A user's text as a figure for print can show it: characters that no installed font has become code points, long texts short.

    Example:
        >>> drawable("jpeg\\n\N{GREEK SMALL LETTER LAMDA}")
        'jpeg λ'
    """
    text = printable(text)
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH // 2]}...{text[-MAX_LENGTH // 2 :]}"
    runs = itertools.groupby(text, key=lambda c: bool(_font_of(c)))
    return "".join("".join(run) if has_font else f"[{' '.join(f'U+{ord(c):04X}' for c in run)}]" for has_font, run in runs)


def use_fonts(figure: Figure) -> None:
    """Give every text of a figure the fonts that have its characters."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        families = dict.fromkeys(_font_of(c) for c in text.get_text() if not c.isspace())
        others = [name for name in families if name and name != FAMILY]
        if others:
            text.set_fontfamily([FAMILY, *others])


@contextmanager
def quiet_about_fonts() -> Iterator[None]:
    """No word of matplotlib about fonts: a browser has those of a page, and for print any face of a font will do."""
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")
        warnings.filterwarnings("ignore", "constrained_layout not applied")  # By very long names, which still are readable.
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@functools.lru_cache(maxsize=4096)
def _font_of(character: str) -> str:
    """The family of the first font that has a character; empty if none has it."""
    from matplotlib import font_manager

    if character.isspace() or ord(character) in _characters_of(font_manager.findfont(FAMILY)):
        return FAMILY
    for name, path in _installed_fonts().items():
        if ord(character) in _characters_of(path):
            return name
    return ""


@functools.lru_cache(maxsize=1)
def _installed_fonts() -> dict[str, str]:
    """Path of the regular face of every installed family, those of `WIDE_FONTS` first."""
    from matplotlib import font_manager

    rank = {name: k for k, name in enumerate(WIDE_FONTS)}

    def distance(entry: font_manager.FontEntry) -> tuple[int, str, int, str]:
        weight = entry.weight if isinstance(entry.weight, int) else font_manager.weight_dict.get(entry.weight, 400)
        return rank.get(entry.name, len(rank)), entry.name, abs(weight - 400) + 1000 * (entry.style != "normal"), entry.fname

    entries = sorted(font_manager.fontManager.ttflist, key=distance, reverse=True)
    # matplotlib brings a font of last resort, which draws the same box for all characters of a script.
    fonts = {entry.name: entry.fname for entry in entries if entry.name != FAMILY and not entry.name.startswith("Last Resort")}
    return dict(reversed(fonts.items()))


@functools.lru_cache(maxsize=64)
def _characters_of(path: str) -> frozenset[int]:
    """Code points of the characters that a font can draw at any size; none if it cannot be read or holds bitmaps only."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        font.set_size(10, 72)  # Fails for a font of bitmaps, as those of coloured emoji are.
        return frozenset(font.get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
