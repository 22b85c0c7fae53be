"""Figures beside the rate-accuracy curves: features lost by layer, time against BD-rate, and what the bits are spent on.

Each function returns a matplotlib figure for print (`PRINT`) or for the page (`PAGE`); `extra_figures` makes all that the data
allow.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from icmbench.results.curves import COLOURS, INK, PRINT, Style, Theme, settings, settle, shown, stem, styles
from icmbench.results.curves import title as key_title
from icmbench.results.scores import GROUP, ScoresError, codecs, curve, keys

LAYER = re.compile(r"layer(\d+)\.(\d+)")
PARTS = ["codec", "point", "part", "bits"]
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "|||", "---")


def extra_figures(
    scores: pd.DataFrame, bdrate: pd.DataFrame, parts: pd.DataFrame | None = None, theme: Theme = PRINT
) -> Iterator[tuple[str, str, Figure]]:
    """(file stem, title, figure) of all layer curves, of decoding time against BD-rate of every other key, and of the bit split.

    scores: a normalised frame of the keys wanted. parts: as of `bit_split`, or None.
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
    if parts is not None and len(parts):
        yield "bit-split", "What the bits are spent on", bit_split(parts, theme)


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
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.18, 0.12)
        axes.set_xlabel(f"seconds to {seconds.partition('_')[0]} an image (log scale)")
        axes.set_ylabel(textwrap.shorten(shown(f"BD-rate against {anchor} (%)"), 50))
        if missing:
            figure.supxlabel(
                textwrap.shorten(shown(f"no BD-rate or time: {', '.join(missing)}"), 80), fontsize="small", color=theme.muted
            )
        axes.grid(True)
        axes.set_axisbelow(True)
        settle(figure)
        return figure


def bit_split(parts: pd.DataFrame, theme: Theme = PRINT) -> Figure:
    """Share of each part of the streams: a bar for each codec point, its mean bits an image beside it.

    parts: columns codec, point, part, bits (mean bits of an image), in the order to be shown. Raises ScoresError for others.
    """
    missing = [column for column in PARTS if column not in parts]
    if missing or not len(parts):
        raise ScoresError(f"a bit split needs rows with {', '.join(PARTS)}; missing: {', '.join(missing) or 'rows'}")
    table = parts.pivot_table("bits", ["codec", "point"], "part", "sum", fill_value=0, sort=False)
    totals = table.sum(axis=1)
    names = [shown(" ".join(where)) for where in table.index]
    with mpl.rc_context({**settings(theme), "hatch.linewidth": 0.5}):
        figure = Figure(figsize=(5.2, 1.1 + 0.28 * len(table)), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        left = np.zeros(len(table))
        handles: list[Any] = []
        colours: Sequence[str] = [colour for colour in COLOURS if colour != INK]
        for k, part in enumerate(table.columns):
            share = 100 * (table[part] / totals.where(totals > 0)).fillna(0).to_numpy()
            look: dict[str, Any] = {
                "color": colours[k % len(colours)],
                "hatch": HATCHES[k // len(colours) % len(HATCHES)],
                "edgecolor": "white",
            }
            handles.append(axes.barh(range(len(table)), share, left=left, height=0.7, linewidth=0.6, **look))
            left += share
        for place, total in enumerate(totals):
            axes.text(101, place, f"{total:,.0f} bits", va="center", fontsize="small")
        axes.set_yticks(range(len(table)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the bits (%)")
        figure.set_layout_engine("constrained", w_pad=0.12)  # room for the bits, which stand outside the axes
        legend = figure.legend(handles, [*map(str, range(len(handles)))], loc="outside lower center", ncols=min(len(handles), 4))
        for text, name in zip(legend.get_texts(), table.columns, strict=True):
            text.set_text(shown(str(name)))
        settle(figure)
        return figure


def _mark(axes: mpl.axes.Axes, x: float, y: float, name: str, look: Style) -> None:
    axes.plot([x], [y], color=look.colour, marker=look.marker, markersize=7, linestyle="none")
    text = axes.annotate(shown(name), (x, y), xytext=(6, 5), textcoords="offset points", fontsize="small")
    text.set_in_layout(False)  # a long name runs out of the figure rather than squeeze the axes


def _stem(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.") or "figure"
