"""Rate-accuracy curves: one figure a dataset, task, model and metric, as PNG, SVG and PDF, and as SVG inside the report.

The colours are those of Okabe and Ito (Color Universal Design, 2008) without yellow, which print loses; markers and line
styles tell the codecs apart without colour. Plain dashes are never a codec that was measured: with hollow markers they are a
curve that a paper reports, without markers the uncompressed ceiling.
The same scores give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from icmbench.results.published import REPORTED, with_reported
from icmbench.results.scores import Key, ceiling, codecs, curve
from icmbench.results.tables import LIMITED

INK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", (0, (6, 1.2, 1, 1.2)), (0, (1, 1)), (0, (6, 1.2, 1, 1.2, 1, 1.2)), (0, (10, 1.5)))
REPORTED_LINE = (0, (3, 2))
FACTS: dict[str, dict[str, Any]] = {  # what matplotlib would write into a file, its dates above all, left out
    ".png": {"Software": None},
    ".svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    ".pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}


@dataclass(frozen=True)
class Style:
    """How one codec looks in every figure: a colour, a marker (filled or not), a line style as matplotlib names them."""

    colour: str
    marker: str
    line: Any
    filled: bool = True

    @property
    def face(self) -> str:
        return self.colour if self.filled else "none"


@dataclass(frozen=True)
class Theme:
    """Colours of everything but the codecs. The report swaps `PAGE`'s for CSS, so that they follow light and dark."""

    ink: str
    muted: str
    grid: str
    face: str
    css: Mapping[str, str]


PRINT = Theme(INK, "#595959", "#d9d9d9", "white", {})
PAGE = Theme(
    "#010203", "#040506", "#070809", "none",
    {"#010203": "currentColor", "#040506": "var(--muted)", "#070809": "var(--line)", INK: "currentColor"},
)  # fmt: skip


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A look for each codec by its position; colours and markers together repeat after 56. Reported ones are dashed, hollow."""
    return {
        name: Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], REPORTED_LINE, False)
        if name.endswith(REPORTED)
        else Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], LINES[k % len(LINES)])
        for k, name in enumerate(names)
    }


def draw(scores: pd.DataFrame, key: Key, looks: Mapping[str, Style] | None = None, reported: pd.DataFrame | None = None) -> Figure:
    """The figure of one key of a normalised scores frame, for print: rate on a log axis, ceiling dashed, legend below.

    Bars span `low` to `high`, or the realisations of a point. Points that are not finite are left out.
    reported: curves of papers, as of `reported_curves`, to be drawn dashed where they match the key.
    """
    if reported is not None:
        scores = with_reported(scores, reported)
        looks = styles([*(looks or ()), *(name for name in codecs(scores) if name not in (looks or ()))])
    with mpl.rc_context(settings(PRINT)):
        figure = Figure(figsize=(4.8, 3.8), dpi=72, layout="constrained", facecolor=PRINT.face)
        axes = figure.add_subplot()
        handles = _plot(axes, scores, key, looks or styles(codecs(scores)), PRINT)[0]
        axes.set_title(title(key))
        if handles:
            _legend(figure, handles)
        settle(figure)
        return figure


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Below the axes, in as many columns, up to four, as the figure is wide enough for."""
    for columns in range(min(len(handles), 4), 0, -1):
        legend = figure.legend(handles.values(), map(str, range(len(handles))), loc="outside lower center", ncols=columns)
        for text, name in zip(legend.get_texts(), handles, strict=True):
            text.set_text(shown(name))  # not as a label: matplotlib hides those that begin with an underscore
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def save(figure: Figure, stem: Path, formats: Sequence[str] = (".png", ".svg", ".pdf")) -> list[Path]:
    """Write `stem` + .png (200 dpi), .svg and .pdf; returns the paths."""
    paths = []
    with mpl.rc_context(settings(PRINT)):
        for suffix in formats:
            paths.append(stem.with_name(stem.name + suffix))
            figure.savefig(paths[-1], dpi=200 if suffix == ".png" else 72, metadata=FACTS[suffix])
    return paths


def inline_svg(scores: pd.DataFrame, key: Key, looks: Mapping[str, Style]) -> str:
    """The figure of one key as an SVG element for a page: no legend, colours from CSS, codecs as classes, points that tell.

    What belongs to the k-th codec of `looks` has `class="codec" data-codec="k"`; each point carries a `<title>`.
    """
    with mpl.rc_context(settings(PAGE)):
        figure = Figure(figsize=(5.0, 3.4), dpi=72, layout="constrained", facecolor="none")
        axes = figure.add_subplot()
        _, dots = _plot(axes, scores, key, looks, PAGE)
        settle(figure)
        circles = []
        for index, x, y, tip in dots:
            left, bottom = axes.transData.transform((x, y))
            place = f'cx="{left:.1f}" cy="{figure.bbox.height - bottom:.1f}"'
            about = f'class="codec dot" data-codec="{index}"'
            circles.append(f'<circle {about} {place} r="9" fill="transparent"><title>{escape(tip)}</title></circle>')
        return page_svg(figure, f"rate-{title(key)}", title(key), "".join(circles))


def swatch(style: Style) -> str:
    """A codec's line and marker as a small SVG element for a page's legend."""
    with mpl.rc_context(settings(PAGE)):
        figure = Figure(figsize=(0.5, 0.2), dpi=72, facecolor="none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
        axes.set_axis_off()
        axes.plot([0, 0.5, 1], [0.5] * 3, color=style.colour, linestyle=style.line, linewidth=1.6)
        axes.plot([0.5], [0.5], color=style.colour, marker=style.marker, markersize=6, markerfacecolor=style.face)
        return page_svg(figure, f"swatch-{style}", "", "")


def title(key: Key) -> str:
    """`coco, yolox (yolox-onnx): AP`, and whether that is agreement."""
    where = ", ".join(part for part in (key.dataset, key.task) if part) + (f" ({key.model})" if key.model else "")
    kind = " (agreement)" if key.reference == "original" else ""
    return shown(f"{where}: {key.metric}{kind}" if where else key.metric + kind)


def stem(key: Key) -> str:
    """A file name for a key, letters, digits, dots and hyphens only; not unique among hostile names."""
    parts = [key.dataset, key.task, key.model, key.metric, "agreement" if key.reference == "original" else ""]
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)
    return "-".join(word for word in words if word)[:100] or "curve"


def shown(text: str) -> str:
    """A user's text on one line, without the control characters that SVG cannot hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def settings(theme: Theme) -> Any:  # Any: matplotlib lists every key as a literal
    """matplotlib's settings of every figure."""
    return {
        "svg.hashsalt": "icmbench",
        "svg.fonttype": "path" if theme is PRINT else "none",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9 if theme is PRINT else 10.5,
        "axes.titlesize": "medium",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.handlelength": 3.2,
        "axes.facecolor": theme.face,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), theme.ink),
    }


def _plot(
    axes: Axes, scores: pd.DataFrame, key: Key, looks: Mapping[str, Style], theme: Theme
) -> tuple[dict[str, Any], list[tuple[int, float, float, str]]]:
    """Draw everything of one key; returns the legend's handles by codec, and (codec, x, y, words) of every point."""
    rows = key.rows(scores)
    unit = str(rows["unit"].iloc[0])
    handles: dict[str, Any] = {}
    dots: list[tuple[int, float, float, str]] = []
    for index, (name, look) in enumerate(looks.items()):
        points = curve(rows, name)
        points = points[np.isfinite(points["value"]) & np.isfinite(points["bpp"]) & (points["bpp"] > 0)]
        if not len(points):
            continue
        x, y = points["bpp"].to_numpy(), points["value"].to_numpy()
        line = axes.plot(x, y, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=1.6, markersize=5.5)[0]
        line.set_markerfacecolor(look.face)
        line.set_gid(f"codec{index}")
        handles[name] = line
        bars = np.stack([y - points["low"].to_numpy(), points["high"].to_numpy() - y])
        barred = np.isfinite(bars).all(axis=0) & (bars.max(axis=0) > 0)
        if barred.any():
            sizes = np.clip(bars[:, barred], 0, None)
            drawn = axes.errorbar(x[barred], y[barred], sizes, fmt="none", ecolor=look.colour, elinewidth=1.1, capsize=2.5)
            for part in (*drawn.lines[1], *drawn.lines[2]):
                part.set_gid(f"codec{index}")
        for row in points.itertuples():
            dots.append((index, row.bpp, row.value, _tip(name, row, key.metric, unit)))
    higher = bool(rows["higher_is_better"].iloc[0])
    top = ceiling(rows)
    if top is not None:
        axes.axhline(top, color=theme.muted, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
        side = -1 if higher else 1  # towards the curves, where their axes have room
        place = axes.get_yaxis_transform() + ScaledTranslation(3 / 72, side * 3 / 72, axes.figure.dpi_scale_trans)
        text = f"uncompressed {top:.4g}"
        axes.text(0, top, text, color=theme.muted, fontsize="small", transform=place, va="top" if higher else "bottom")
    kind = "agreement: " if key.reference == "original" else ""
    suffix = (f" ({unit})" if unit else "") + ("" if higher else ", less is better")
    axes.set_xlabel("bits per pixel (log scale)")
    axes.set_ylabel(shown(f"{kind}{key.metric}{suffix}"))
    log_axis(axes, np.array([dot[1] for dot in dots]))
    axes.grid(True)
    axes.set_axisbelow(True)
    if rows["limited"].any():
        axes.text(0.99, 0.02, LIMITED, transform=axes.transAxes, ha="right", color="#C00000", weight="bold")
    return handles, dots


def settle(figure: Figure) -> None:
    """Lay the figure out once, not anew for every format."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def log_axis(axes: Axes, rates: np.ndarray) -> None:
    """A log x axis with plain numbers on it, more of them where the values, all above 0, are close together."""
    if not len(rates):
        return
    decades = np.log10(rates.max() / rates.min())
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 0.7 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tip(name: str, row: Any, metric: str, unit: str) -> str:
    bar = f" ({row.low:.4g} to {row.high:.4g})" if np.isfinite(row.low) and np.isfinite(row.high) else ""
    return shown(f"{name}, {row.point}: {metric} {row.value:.4g}{' ' * bool(unit)}{unit}{bar} at {row.bpp:.4g} bpp")


def page_svg(figure: Figure, salt: str, name: str, extra: str = "") -> str:
    """The figure, of the theme `PAGE`, as one SVG element: ids made unique by the salt, colours by CSS, sized by its container."""
    buffer = io.StringIO()
    with mpl.rc_context(settings(PAGE)):
        figure.savefig(buffer, format="svg", metadata=FACTS[".svg"])
    text = buffer.getvalue()
    text = text[text.index("<svg") : text.rindex("</svg>")]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="codec(\d+)">', r'<g class="codec" data-codec="\1">', text)
    prefix = f"s{hashlib.sha256(salt.encode()).hexdigest()[:8]}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text.replace("xlink:href", "href"))
    for colour, css in PAGE.css.items():
        text = text.replace(colour, css)
    label = f'role="img" aria-label="{escape(name)}"' if name else 'aria-hidden="true"'
    width, height = figure.get_size_inches() * 72
    start = f'<svg {label} viewBox="0 0 {width:g} {height:g}">'
    return start + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]) + extra + "</svg>"
