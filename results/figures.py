"""Figures beside the rate-accuracy curves: features lost by layer, time against BD-rate, realism against fidelity.

Each function returns a matplotlib figure for print (`PRINT`) or for the page (`PAGE`); `extra_figures` makes all that the data
allow, those of a codec's own analyses (`analyses.py`) included.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from icmbench.results import analyses
from icmbench.results.bd import quality_at
from icmbench.results.curves import PRINT, Style, Theme, log_axis, settings, settle, shown, stem, styles
from icmbench.results.curves import title as key_title
from icmbench.results.scores import GROUP, LAYER, ScoresError, codecs, curve, keys

REALISM, FIDELITY = ("fid", "kid"), ("lpips", "dists")  # of both, less is better


def extra_figures(
    scores: pd.DataFrame, bdrate: pd.DataFrame, own: Mapping[str, pd.DataFrame] | None = None, theme: Theme = PRINT
) -> Iterator[tuple[str, str, Figure]]:
    """(file stem, title, figure) of layer curves, decoding time against BD-rate, realism against fidelity, codecs' analyses.

    scores: a normalised frame of the keys wanted. own: frames of codecs' own analyses, by a name of `analyses.FIGURES`.
    """
    layered = scores[scores["metric"].str.fullmatch(LAYER)]
    for where, rows in layered.groupby([name for name in GROUP if name != "metric"], sort=False):
        name = " ".join(filter(None, map(str, where[:2])))
        yield f"layers-{_stem(name)}", f"{name}: features lost by layer", layer_curves(rows, theme)
    for key in keys(scores[~scores["metric"].str.fullmatch(LAYER)]):
        rows, deltas = key.rows(scores), key.rows(bdrate)
        if (
            deltas["bd_rate_percent"].notna().any()
            and rows.loc[rows["codec"].isin(deltas["codec"]), "decode_seconds"].notna().any()
        ):
            yield (
                f"time-{stem(key)}",
                f"{key_title(key)}: BD-rate by time to decode",
                time_against_bdrate(rows, deltas, theme=theme),
            )
    for dataset, rows in scores.groupby("dataset", sort=False):
        there = set(rows["metric"])
        pairs = [(realism, fidelity) for realism in REALISM for fidelity in FIDELITY if {realism, fidelity} <= there]
        for realism, fidelity in pairs:
            rate = _shared_rate(rows[rows["metric"].isin([realism, fidelity])])
            if rate is not None:
                yield (
                    f"realism-{_stem(f'{dataset} {realism} {fidelity}')}",
                    f"{dataset}: {realism} against {fidelity} at {rate:.3g} bpp",
                    realism_against_fidelity(rows, rate, realism, fidelity, theme),
                )
    for name, frame in (own or {}).items():
        if len(frame):
            title, draw = analyses.FIGURES[name]
            yield name, title, draw(frame, theme)


def _shared_rate(rows: pd.DataFrame) -> float | None:
    """The rate, to two digits, in the middle of what most codecs' curves cover; None without two codecs."""
    spans = rows[rows["bpp"] > 0].groupby("codec")["bpp"].agg(["min", "max"])
    if len(spans) < 2:
        return None
    ends = np.sort(np.log10(spans.to_numpy()).ravel())
    inside = [((spans["min"] <= 10**x) & (spans["max"] >= 10**x)).sum() for x in (ends[:-1] + ends[1:]) / 2]
    best = np.flatnonzero(np.array(inside) == max(inside))
    return float(f"{10 ** ((ends[best[0]] + ends[best[-1] + 1]) / 2):.2g}")


def layer_curves(rows: pd.DataFrame, theme: Theme = PRINT) -> Figure:
    """Feature difference by layer: a panel for each codec, a line for each of its points, darker with rate.

    rows: scores of one dataset and task whose metrics are `layer<stage>.<block>`. After Diff-ICMH, figure 13.
    Raises ScoresError where no metric is a layer.
    """
    rows = rows[rows["metric"].str.fullmatch(LAYER)]
    layers = sorted(rows["metric"].unique(), key=lambda name: [*map(int, LAYER.fullmatch(name).groups())])  # type: ignore[union-attr]
    names = codecs(rows)
    if not layers or not names:
        raise ScoresError("no metric layer1.0 to layer4.2 of a codec; run the task `layers`")
    rates = rows.loc[rows["bpp"] > 0, "bpp"]
    norm = LogNorm(rates.min() * 0.5, rates.max() * 1.05)  # the palest end of the map is lost on paper
    colours = mpl.colormaps["cividis_r"]
    with mpl.rc_context(settings(theme)):
        columns = min(len(names), 3)
        lines = -(-len(names) // columns)
        figure = Figure(figsize=(1.2 + 2.6 * columns, 0.5 + 2.4 * lines), dpi=72, layout="constrained", facecolor=theme.face)
        panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes, name in zip(panels, names, strict=False):
            by_layer = {layer: curve(rows[rows["metric"] == layer], name).set_index("point") for layer in layers}
            for point, rate in by_layer[layers[0]]["bpp"].items():
                values = [by_layer[layer]["value"].get(point, np.nan) for layer in layers]
                axes.plot(range(len(layers)), values, color=colours(norm(rate)), marker="o", markersize=3, linewidth=1.4)
            axes.set_title(shown(name))
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
        settle(figure)
        return figure


def time_against_bdrate(rows: pd.DataFrame, bdrate: pd.DataFrame, seconds: str = "decode_seconds", theme: Theme = PRINT) -> Figure:
    """BD-rate against seconds an image (log axis): one mark a codec, the anchor at 0; lower left is better.

    rows, bdrate: those of one key. seconds: `encode_seconds` or `decode_seconds`, averaged over a codec's points. Codecs without
    a BD-rate or a time are named below the axes.
    """
    anchor = str(bdrate["anchor"].iloc[0]) if len(bdrate) else None
    percents = bdrate.set_index("codec")["bd_rate_percent"].to_dict() | ({anchor: 0.0} if anchor else {})
    bars = bdrate.set_index("codec")[["low", "high"]]
    looks = styles(codecs(rows))
    times = rows.groupby("codec")[seconds].mean()
    missing = []
    with mpl.rc_context(settings(theme)):
        figure = Figure(figsize=(4.8, 3.6), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        axes.axhline(0, color=theme.muted, linewidth=0.8, zorder=1)
        for name, look in looks.items():
            x, y = times.get(name, np.nan), percents.get(name, np.nan)
            if not (np.isfinite(y) and x > 0):
                missing.append(name)
                continue
            if name in bars.index and np.isfinite(bars.loc[name]).all():
                sizes = np.clip([[y - bars.loc[name, "low"]], [bars.loc[name, "high"] - y]], 0, None)
                axes.errorbar([x], [y], sizes, fmt="none", ecolor=look.colour, elinewidth=1.1, capsize=2.5)
            _mark(axes, x, y, name, look)
        log_axis(axes, times[times > 0].to_numpy())
        axes.margins(0.18, 0.12)
        axes.set_xlabel(f"seconds to {seconds.partition('_')[0]} an image (log scale)")
        axes.set_ylabel(textwrap.shorten(shown(f"BD-rate against {anchor} (%)"), 50))
        _below(figure, "no BD-rate or time", missing, theme)
        axes.grid(True)
        axes.set_axisbelow(True)
        settle(figure)
        return figure


def realism_against_fidelity(
    rows: pd.DataFrame, rate: float, realism: str = "fid", fidelity: str = "lpips", theme: Theme = PRINT
) -> Figure:
    """Two metrics at one rate, a mark for each codec: perceptual realism across, perceptual fidelity up; lower left is better.

    rows: scores of one dataset. Values at `rate` (bits per pixel) lie on each codec's curve (PCHIP over log-rate); codecs whose
    points do not reach it are named below the axes. After ResULIC, figure 11.
    """
    looks = styles(codecs(rows))
    missing = []
    with mpl.rc_context(settings(theme)):
        figure = Figure(figsize=(4.8, 3.6), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        for name, look in looks.items():
            curves = [curve(rows[rows["metric"] == metric], name)[["bpp", "value"]].to_numpy() for metric in (realism, fidelity)]
            x, y = (quality_at(points, rate) for points in curves)
            if x is None or y is None:
                missing.append(name)
            else:
                _mark(axes, x, y, name, look)
        axes.margins(0.18, 0.12)
        axes.set_xlabel(f"{realism}, less is better")
        axes.set_ylabel(f"{fidelity}, less is better")
        axes.set_title(f"at {rate:.3g} bits per pixel")
        _below(figure, "not measured about this rate", missing, theme)
        axes.grid(True)
        axes.set_axisbelow(True)
        settle(figure)
        return figure


def _below(figure: Figure, why: str, names: list[str], theme: Theme) -> None:
    """A line below the axes that names what is not in them."""
    if names:
        text = textwrap.shorten(shown(f"{why}: {', '.join(names)}"), 80)
        figure.supxlabel(text, fontsize="small", color=theme.muted)


def _mark(axes: mpl.axes.Axes, x: float, y: float, name: str, look: Style) -> None:
    axes.plot([x], [y], color=look.colour, marker=look.marker, markersize=7, linestyle="none")
    text = axes.annotate(shown(name), (x, y), xytext=(6, 5), textcoords="offset points", fontsize="small")
    text.set_in_layout(False)  # a long name runs out of the figure rather than squeeze the axes


def _stem(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "figure"
