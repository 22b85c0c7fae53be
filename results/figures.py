"""Figures beside the rate-accuracy curves: features lost by layer, time against BD-rate, realism against fidelity.

Each function draws a matplotlib figure for print (`PRINT`) or for the page (`PAGE`). Marks of codecs that estimate their rate are
hollow, and their names say so. `extra_figures` draws all that the data allow, those of a codec's own analyses (`analyses.py`)
included.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from icmbench.results.analyses import FIGURES
from icmbench.results.bd import quality_at
from icmbench.results.curves import (
    PRINT,
    Style,
    Theme,
    codec_styles,
    figure_title,
    file_stem,
    freeze_layout,
    matplotlib_settings,
    set_log_x_axis,
)
from icmbench.results.scores import (
    KEY_COLUMNS,
    LAYER,
    Scores,
    ScoresError,
    codec_names,
    curve_keys,
    curve_points,
    estimated_codecs,
    marked_name,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Metrics of which less is better: perceptual realism of a whole set of images, and perceptual fidelity to each original.
REALISM, FIDELITY = ("fid", "kid"), ("lpips", "dists")


def extra_figures(
    scores: Scores, bdrate: pd.DataFrame, codec_analyses: Mapping[str, pd.DataFrame] | None = None, theme: Theme = PRINT
) -> Iterator[tuple[str, str, Figure]]:
    """(file stem, title, figure) of layer curves, decoding time against BD-rate, realism against fidelity, codecs' own analyses.

    Args:
        scores: the rows of normalised scores whose keys are to be drawn.
        bdrate: as `bdrate_frame` returns it.
        codec_analyses: frames of codecs' own analyses, by a name of `analyses.COLUMNS`; those in `analyses.FIGURES` are drawn.
        theme: colours for print or for a page.
    """
    is_layer = scores["metric"].str.fullmatch(LAYER)
    for names, rows in scores[is_layer].groupby([name for name in KEY_COLUMNS if name != "metric"], sort=False):
        source = " ".join(filter(None, map(str, names[:2])))
        yield f"layers-{_file_stem(source)}", f"{source}: features lost by layer", draw_layer_curves(rows, theme)
    yield from _time_figures(scores[~is_layer], bdrate, theme)
    yield from _realism_figures(scores, theme)
    for name, frame in (codec_analyses or {}).items():
        if name in FIGURES and len(frame):
            title, draw = FIGURES[name]
            yield name, title, draw(frame, theme)


def _time_figures(scores: Scores, bdrate: pd.DataFrame, theme: Theme) -> Iterator[tuple[str, str, Figure]]:
    """(file stem, title, figure) of every key with a BD-rate and the decoding time of a codec that has a row in `bdrate`."""
    for key in curve_keys(scores):
        rows, deltas = key.rows(scores), key.rows(bdrate)
        seconds = rows.loc[rows["codec"].isin(deltas["codec"]), "decode_seconds"]
        if deltas["bd_rate_percent"].notna().any() and seconds.notna().any():
            figure = draw_time_against_bdrate(rows, deltas, theme=theme)
            yield f"time-{file_stem(key)}", f"{figure_title(key)}: BD-rate by time to decode", figure


def _realism_figures(scores: Scores, theme: Theme) -> Iterator[tuple[str, str, Figure]]:
    """(file stem, title, figure) of every dataset and pair of metrics that two codecs or more have."""
    for dataset, rows in scores.groupby("dataset", sort=False):
        metrics = set(rows["metric"])
        pairs = [(realism, fidelity) for realism in REALISM for fidelity in FIDELITY if {realism, fidelity} <= metrics]
        for realism, fidelity in pairs:
            rate = _shared_rate(rows[rows["metric"].isin([realism, fidelity])])
            if rate is not None:
                stem = _file_stem(f"{dataset} {realism} {fidelity}")
                title = f"{dataset}: {realism} against {fidelity} at {rate:.3g} bpp"
                yield f"realism-{stem}", title, draw_realism_against_fidelity(rows, rate, realism, fidelity, theme)


def _shared_rate(rows: Scores) -> float | None:
    """The rate, to two digits, in the middle of what most codecs' curves cover; None without two codecs."""
    spans = rows[rows["bpp"] > 0].groupby("codec")["bpp"].agg(["min", "max"])
    if len(spans) < 2:
        return None
    ends = np.sort(np.log10(spans.to_numpy()).ravel())
    inside = [((spans["min"] <= 10**x) & (spans["max"] >= 10**x)).sum() for x in (ends[:-1] + ends[1:]) / 2]
    best = np.flatnonzero(np.array(inside) == max(inside))
    return float(f"{10 ** ((ends[best[0]] + ends[best[-1] + 1]) / 2):.2g}")


def draw_layer_curves(scores: Scores, theme: Theme = PRINT) -> Figure:
    """Feature difference by layer: one panel per codec, one line per point, darker with rate. After Diff-ICMH, figure 13.

    Args:
        scores: rows of one dataset and task; those whose metric is no `layer<stage>.<block>` are ignored.
        theme: colours for print or for a page.

    Raises:
        ScoresError: no metric of a codec is a layer.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    rows = scores[scores["metric"].str.fullmatch(LAYER)]
    layers = sorted(rows["metric"].unique(), key=lambda name: [*map(int, LAYER.fullmatch(name).groups())])  # type: ignore[union-attr]
    names, estimated = codec_names(rows), estimated_codecs(rows)
    if not layers or not names:
        raise ScoresError("no metric layer1.0 to layer4.2 of a codec; run the task `layers`")
    rates = rows.loc[rows["bpp"] > 0, "bpp"]
    norm = LogNorm(rates.min() * 0.5, rates.max() * 1.05)  # The palest end of the colour map would be lost on paper.
    colours = mpl.colormaps["cividis_r"]
    with mpl.rc_context(matplotlib_settings(theme)):
        columns = min(len(names), 3)
        lines = -(-len(names) // columns)
        figure = Figure(figsize=(1.2 + 2.6 * columns, 0.5 + 2.4 * lines), dpi=72, layout="constrained", facecolor=theme.face)
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, name in zip(panels, names, strict=False):
            by_layer = {layer: curve_points(rows[rows["metric"] == layer], name).set_index("point") for layer in layers}
            for point, rate in by_layer[layers[0]]["bpp"].items():
                values = [by_layer[layer]["value"].get(point, np.nan) for layer in layers]
                colour = colours(norm(rate))
                line = axes.plot(range(len(layers)), values, color=colour, marker="o", markersize=3, linewidth=1.4)[0]
                line.set_markerfacecolor("none" if name in estimated else colour)
            axes.set_title(theme.text(marked_name(name, estimated)))
            axes.set_xticks(range(len(layers)), [layer.removeprefix("layer") for layer in layers], rotation=90)
            axes.grid(True)
            axes.set_axisbelow(True)
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        figure.supxlabel("layer", fontsize="medium")
        figure.supylabel("feature difference", fontsize="medium")
        bar = figure.colorbar(ScalarMappable(norm, colours), ax=[*panels], pad=0.02, label="bits per pixel")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        freeze_layout(figure)
        return figure


def draw_time_against_bdrate(scores: Scores, bdrate: pd.DataFrame, seconds: str = "decode_seconds", theme: Theme = PRINT) -> Figure:
    """BD-rate against seconds per image (log axis): one mark per codec, the anchor at 0; lower left is better.

    Codecs without a BD-rate or a time are named below the axes.

    Args:
        scores: the rows of one key.
        bdrate: the rows of the same key of a `bdrate_frame`.
        seconds: `encode_seconds` or `decode_seconds`, averaged over a codec's points.
        theme: colours for print or for a page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    anchor = str(bdrate["anchor"].iloc[0]) if len(bdrate) else None
    percents = bdrate.set_index("codec")["bd_rate_percent"].to_dict() | ({anchor: 0.0} if anchor else {})
    bars = bdrate.set_index("codec")[["low", "high"]]
    estimated = estimated_codecs(scores)
    looks = codec_styles(codec_names(scores), estimated)
    times = scores.groupby("codec")[seconds].mean()
    missing = []
    with mpl.rc_context(matplotlib_settings(theme)):
        figure = Figure(figsize=(4.8, 3.6), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        axes.axhline(0, color=theme.muted, linewidth=0.8, zorder=1)
        for name, look in looks.items():
            x, y = times.get(name, np.nan), percents.get(name, np.nan)
            if not (np.isfinite(y) and x > 0):
                missing.append(marked_name(name, estimated))
                continue
            if name in bars.index and np.isfinite(bars.loc[name]).all():
                sizes = np.clip([[y - bars.loc[name, "low"]], [bars.loc[name, "high"] - y]], 0, None)
                axes.errorbar([x], [y], sizes, fmt="none", ecolor=look.colour, elinewidth=1.1, capsize=2.5)
            _mark_codec(axes, x, y, marked_name(name, estimated), look, theme)
        set_log_x_axis(axes, times[times > 0].to_numpy())
        axes.set_xlabel(f"seconds to {seconds.partition('_')[0]} an image (log scale)")
        axes.set_ylabel(textwrap.shorten(theme.text(f"BD-rate against {marked_name(str(anchor), estimated)} (%)"), 50))
        _finish_marks(figure, axes, "no BD-rate or time", missing, theme)
        return figure


def draw_realism_against_fidelity(
    scores: Scores, rate: float, realism: str = "fid", fidelity: str = "lpips", theme: Theme = PRINT
) -> Figure:
    """Two metrics at one rate: realism across, fidelity up, one mark per codec; lower left is better. After ResULIC, figure 11.

    Values at the rate lie on each codec's curve (PCHIP over log rate). Codecs whose points do not reach the rate are named below
    the axes.

    Args:
        scores: rows of one dataset.
        rate: in bits per pixel.
        realism: a metric of perceptual realism.
        fidelity: a metric of perceptual fidelity.
        theme: colours for print or for a page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    missing, estimated = [], estimated_codecs(scores)
    with mpl.rc_context(matplotlib_settings(theme)):
        figure = Figure(figsize=(4.8, 3.6), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        for name, look in codec_styles(codec_names(scores), estimated).items():
            x, y = (
                quality_at(curve_points(scores[scores["metric"] == metric], name)[["bpp", "value"]].to_numpy(), rate)
                for metric in (realism, fidelity)
            )
            if x is None or y is None:
                missing.append(marked_name(name, estimated))
            else:
                _mark_codec(axes, x, y, marked_name(name, estimated), look, theme)
        axes.set_xlabel(f"{realism}, less is better")
        axes.set_ylabel(f"{fidelity}, less is better")
        axes.set_title(f"at {rate:.3g} bits per pixel")
        _finish_marks(figure, axes, "not measured about this rate", missing, theme)
        return figure


def _mark_codec(axes: Axes, x: float, y: float, name: str, look: Style, theme: Theme) -> None:
    axes.plot([x], [y], color=look.colour, marker=look.marker, markersize=7, linestyle="none", markerfacecolor=look.face)
    text = axes.annotate(theme.text(name), (x, y), xytext=(6, 5), textcoords="offset points", fontsize="small")
    text.set_in_layout(False)  # A long name runs out of the figure; within the layout it would squeeze the axes.


def _finish_marks(figure: Figure, axes: Axes, why_missing: str, missing: list[str], theme: Theme) -> None:
    """Give the marks room and a grid, name the codecs without a mark below the axes, and lay the figure out."""
    axes.margins(0.18, 0.12)
    if missing:
        text = textwrap.shorten(theme.text(f"{why_missing}: {', '.join(missing)}"), 80)
        figure.supxlabel(text, fontsize="small", color=theme.muted)
    axes.grid(True)
    axes.set_axisbelow(True)
    freeze_layout(figure)


def _file_stem(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "figure"
