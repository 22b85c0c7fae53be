"""Rate-accuracy curves: one figure per dataset, task, model and metric, as PNG, SVG and PDF, and as SVG inside the report.

The colours are those of Okabe and Ito (Color Universal Design, 2008) without yellow, which print loses; markers and line
styles tell the codecs apart without colour. No measured codec has a plain dashed line: with hollow markers such a line is a curve
that a paper reports, without markers it is the uncompressed ceiling. Hollow markers on a line that is not dashed are points whose
rate the codec estimates, and the legend says so. Equal scores give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from icmbench.results.columns import ESTIMATED_MARK
from icmbench.results.fonts import FAMILY, drawable, printable, quiet_about_fonts, use_fonts
from icmbench.results.published import REPORTED, with_reported
from icmbench.results.scores import CurveKey, Scores, ceiling_value, codec_names, curve_points, estimated_codecs, marked_name
from icmbench.results.tables import LIMITED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", (0, (6, 1.2, 1, 1.2)), (0, (1, 1)), (0, (6, 1.2, 1, 1.2, 1, 1.2)), (0, (10, 1.5)))
REPORTED_LINE = (0, (3, 2))
# Metadata that matplotlib would write into a file, dates above all, which would change the bytes. None leaves an entry out.
NO_METADATA: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    ".pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}


@dataclass(frozen=True)
class Style:
    """How one codec looks in every figure.

    Attributes:
        colour: of line and marker, as matplotlib names it.
        marker: as matplotlib names it.
        line: line style, as matplotlib names it.
        filled: whether the marker is filled.
    """

    colour: str
    marker: str
    line: Any
    filled: bool = True

    @property
    def face(self) -> str:
        """Colour within the marker."""
        return self.colour if self.filled else "none"


@dataclass(frozen=True)
class Theme:
    """Colours of everything but the codecs.

    Attributes:
        ink: of text and axes.
        muted: of what stands back, such as the ceiling.
        grid: of grid lines.
        face: of the background.
        css: what replaces each colour in the SVG of a page, so that it follows the page's light or dark mode.
        text: makes a user's text fit to be drawn. A browser has fonts for the text of a page, print needs those of this machine.
    """

    ink: str
    muted: str
    grid: str
    face: str
    css: Mapping[str, str]
    text: Callable[[str], str]


PRINT = Theme(INK, "#595959", "#d9d9d9", "white", {}, drawable)
PAGE = Theme(
    "#010203", "#040506", "#070809", "none",
    {"#010203": "currentColor", "#040506": "var(--muted)", "#070809": "var(--line)", INK: "currentColor"},
    printable,
)  # fmt: skip


def codec_styles(names: Sequence[str], estimated: Collection[str] = ()) -> dict[str, Style]:
    """The look of each codec, by its position; colours and markers together repeat after 56. Reported curves are dashed and hollow.

    Args:
        names: names of codecs; those that end in `REPORTED` are reported curves.
        estimated: those of them whose rates are estimated, which are hollow.
    """
    return {
        name: Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], REPORTED_LINE, False)
        if name.endswith(REPORTED)
        else Style(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], LINES[k % len(LINES)], name not in estimated)
        for k, name in enumerate(names)
    }


def draw_curves(
    scores: Scores, key: CurveKey, looks: Mapping[str, Style] | None = None, reported: pd.DataFrame | None = None
) -> Figure:
    """Draw the curves of one key for print: rate on a log axis, the ceiling dashed, the legend below.

    Bars span `low` to `high`, or the realisations of a point. Points that are not finite are left out.

    Args:
        scores: normalised scores, from `read_scores` or `normalise`.
        key: which of their rows to draw.
        looks: from codec to its look; None for the looks of `codec_styles`.
        reported: curves of papers, as `reported_curves` returns them; those that match the key are drawn dashed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    if reported is not None:
        scores = with_reported(scores, reported)
        names = [*(looks or ()), *(name for name in codec_names(scores) if name not in (looks or ()))]
        looks = codec_styles(names, estimated_codecs(scores))
    with mpl.rc_context(matplotlib_settings(PRINT)), quiet_about_fonts():
        figure = Figure(figsize=(4.8, 3.8), dpi=72, layout="constrained", facecolor=PRINT.face)
        axes = figure.add_subplot()
        estimated = estimated_codecs(scores)
        handles = _plot(axes, scores, key, looks or codec_styles(codec_names(scores), estimated), PRINT)[0]
        axes.set_title(drawable(figure_title(key)))
        if handles:
            _add_legend(figure, {marked_name(name, estimated): handle for name, handle in handles.items()})
        freeze_layout(figure)
        return figure


def _add_legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put the legend below the axes, in as many columns, up to four, as fit the figure's width."""
    for columns in range(min(len(handles), 4), 0, -1):
        legend = figure.legend(handles.values(), map(str, range(len(handles))), loc="outside lower center", ncols=columns)
        for text, name in zip(legend.get_texts(), handles, strict=True):
            text.set_text(drawable(name))  # As labels, matplotlib would hide names that begin with an underscore.
        use_fonts(figure)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def save_figure(figure: Figure, stem: Path, formats: Sequence[str] = (".png", ".svg", ".pdf")) -> list[Path]:
    """Write a figure into files.

    Args:
        figure: a figure for print.
        stem: path of the files without their endings.
        formats: endings among .png (200 dpi), .svg and .pdf.

    Returns:
        The paths of the files.
    """
    import matplotlib as mpl

    paths = []
    with mpl.rc_context(matplotlib_settings(PRINT)), quiet_about_fonts():
        for suffix in formats:
            paths.append(stem.with_name(stem.name + suffix))
            figure.savefig(paths[-1], dpi=200 if suffix == ".png" else 72, metadata=NO_METADATA[suffix])
    return paths


def curves_svg(scores: Scores, key: CurveKey, looks: Mapping[str, Style]) -> str:
    """The curves of one key as an SVG element for a page, without a legend and with colours from CSS.

    Every line and point of the k-th codec of `looks` has `class="codec" data-codec="k"`. Each point carries a `<title>`, which the
    page shows when the pointer is near.

    Args:
        scores: normalised scores, from `read_scores` or `normalise`.
        key: which of their rows to draw.
        looks: from codec to its look.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(matplotlib_settings(PAGE)):
        figure = Figure(figsize=(5.0, 3.4), dpi=72, layout="constrained", facecolor="none")
        axes = figure.add_subplot()
        _, dots = _plot(axes, scores, key, looks, PAGE)
        freeze_layout(figure)
        circles = []
        for index, x, y, description in dots:
            left, bottom = axes.transData.transform((x, y))
            position = f'cx="{left:.1f}" cy="{figure.bbox.height - bottom:.1f}"'
            codec = f'class="codec dot" data-codec="{index}"'
            circles.append(f'<circle {codec} {position} r="9" fill="transparent"><title>{escape(description)}</title></circle>')
        return page_svg(figure, f"rate-{figure_title(key)}", figure_title(key), "".join(circles))


def swatch_svg(style: Style) -> str:
    """A codec's line and marker as a small SVG element for a page's legend."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(matplotlib_settings(PAGE)):
        figure = Figure(figsize=(0.5, 0.2), dpi=72, facecolor="none")
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
        axes.set_axis_off()
        axes.plot([0, 0.5, 1], [0.5] * 3, color=style.colour, linestyle=style.line, linewidth=1.6)
        axes.plot([0.5], [0.5], color=style.colour, marker=style.marker, markersize=6, markerfacecolor=style.face)
        return page_svg(figure, f"swatch-{style}", "", "")


def figure_title(key: CurveKey) -> str:
    """The title of a key's figure, which says if it shows agreement.

    Example:
        >>> figure_title(CurveKey("coco", "detector", "yolox-onnx", "AP", "labels"))
        'coco, detector (yolox-onnx): AP'
    """
    source = ", ".join(part for part in (key.dataset, key.task) if part) + (f" ({key.model})" if key.model else "")
    suffix = " (agreement)" if key.reference == "original" else ""
    return printable(f"{source}: {key.metric}{suffix}" if source else key.metric + suffix)


def file_stem(key: CurveKey) -> str:
    """A file name for a key: letters, digits, dots and hyphens only. Two keys of odd names may have one file name.

    Example:
        >>> file_stem(CurveKey("coco", "detector", "yolox-onnx", "AP", "labels"))
        'coco-detector-yolox-onnx-AP'
    """
    parts = [key.dataset, key.task, key.model, key.metric, "agreement" if key.reference == "original" else ""]
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts)
    return "-".join(word for word in words if word)[:100] or "curve"


# The result is Any because matplotlib's types list every setting as a literal.
def matplotlib_settings(theme: Theme) -> Any:
    """matplotlib's settings for every figure of a theme."""
    return {
        "svg.hashsalt": "icmbench",
        "svg.fonttype": "path" if theme is PRINT else "none",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "font.family": FAMILY,
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
    axes: Axes, scores: Scores, key: CurveKey, looks: Mapping[str, Style], theme: Theme
) -> tuple[dict[str, Any], list[tuple[int, float, float, str]]]:
    """Draw everything of one key; returns the legend's handles by codec, and (codec, x, y, description) of every point."""
    rows = key.rows(scores)
    unit = str(rows["unit"].iloc[0])
    handles: dict[str, Any] = {}
    dots: list[tuple[int, float, float, str]] = []
    for index, (name, look) in enumerate(looks.items()):
        points = curve_points(rows, name)
        points = points[np.isfinite(points["value"]) & np.isfinite(points["bpp"]) & (points["bpp"] > 0)]
        if not len(points):
            continue
        if points["estimated"].any():
            look = replace(look, filled=False)
        handles[name] = _plot_codec(axes, points, look, f"codec{index}")
        for row in points.itertuples():
            dots.append((index, row.bpp, row.value, _describe_point(name, row, key.metric, unit)))
    higher_is_better = bool(rows["higher_is_better"].iloc[0])
    ceiling = ceiling_value(rows)
    if ceiling is not None:
        _plot_ceiling(axes, ceiling, higher_is_better, theme)
    prefix = "agreement: " if key.reference == "original" else ""
    suffix = (f" ({unit})" if unit else "") + ("" if higher_is_better else ", less is better")
    axes.set_xlabel("bits per pixel (log scale)")
    axes.set_ylabel(theme.text(f"{prefix}{key.metric}{suffix}"))
    set_log_x_axis(axes, np.array([dot[1] for dot in dots]))
    axes.grid(True)
    axes.set_axisbelow(True)
    if rows["limited"].any():
        axes.text(0.99, 0.02, LIMITED, transform=axes.transAxes, ha="right", color="#C00000", weight="bold")
    return handles, dots


def _plot_codec(axes: Axes, points: pd.DataFrame, look: Style, group_id: str) -> Any:
    """Draw one codec's points, their bars and the line through them, all in SVG groups of one id; returns the legend's handle."""
    x, y = points["bpp"].to_numpy(), points["value"].to_numpy()
    line = axes.plot(x, y, color=look.colour, linestyle=look.line, marker=look.marker, linewidth=1.6, markersize=5.5)[0]
    line.set_markerfacecolor(look.face)
    line.set_gid(group_id)
    bars = np.stack([y - points["low"].to_numpy(), points["high"].to_numpy() - y])
    has_bar = np.isfinite(bars).all(axis=0) & (bars.max(axis=0) > 0)
    if has_bar.any():
        sizes = np.clip(bars[:, has_bar], 0, None)
        drawn = axes.errorbar(x[has_bar], y[has_bar], sizes, fmt="none", ecolor=look.colour, elinewidth=1.1, capsize=2.5)
        for artist in (*drawn.lines[1], *drawn.lines[2]):
            artist.set_gid(group_id)
    return line


def _plot_ceiling(axes: Axes, ceiling: float, higher_is_better: bool, theme: Theme) -> None:
    """Draw the uncompressed score as a dashed line. Its label stands on the side of the curves, where the axes have room."""
    from matplotlib.transforms import ScaledTranslation

    axes.axhline(ceiling, color=theme.muted, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    offset = (-3 if higher_is_better else 3) / 72
    transform = axes.get_yaxis_transform() + ScaledTranslation(3 / 72, offset, axes.figure.dpi_scale_trans)
    align = "top" if higher_is_better else "bottom"
    axes.text(0, ceiling, f"uncompressed {ceiling:.4g}", color=theme.muted, fontsize="small", transform=transform, va=align)


def freeze_layout(figure: Figure) -> None:
    """Choose the fonts of a figure and lay it out once, so that not every format lays it out again."""
    with quiet_about_fonts():
        use_fonts(figure)
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def set_log_x_axis(axes: Axes, values: np.ndarray) -> None:
    """Make the x axis logarithmic with plain numbers on it, more of them if the values are close together.

    Args:
        axes: the axes to change.
        values: what the axis must show, float (n,), all above 0; without values the axis is left as it is.
    """
    if not len(values):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    decades = np.log10(values.max() / values.min())
    subs = (1, 1.5, 2, 3, 4, 5, 6, 8) if decades < 0.7 else (1, 2, 5) if decades < 2.5 else (1,)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _describe_point(codec: str, row: Any, metric: str, unit: str) -> str:
    """`jpeg, quality=24: AP 14.42 % at 0.24 bpp`, or `at 0.24 bpp (estimated rate)`."""
    bar = f" ({row.low:.4g} to {row.high:.4g})" if np.isfinite(row.low) and np.isfinite(row.high) else ""
    mark = ESTIMATED_MARK * row.estimated
    return printable(f"{codec}, {row.point}: {metric} {row.value:.4g}{' ' * bool(unit)}{unit}{bar} at {row.bpp:.4g} bpp{mark}")


def page_svg(figure: Figure, salt: str, name: str, extra: str = "") -> str:
    """A figure as one SVG element for a page, with colours from CSS and the size of its container.

    Args:
        figure: a figure of the theme `PAGE`.
        salt: makes the ids of the element unique within the page.
        name: what the figure shows, for screen readers, which ignore it if the name is empty.
        extra: SVG elements to put on top.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(matplotlib_settings(PAGE)), quiet_about_fonts():
        figure.savefig(buffer, format="svg", metadata=NO_METADATA[".svg"])
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
