"""Figures and tables of a codec's own analyses, which it hands over as data frames.

`analysis_files.COLUMNS` says what the frames hold.

A bit map may have the column `stride`, the pixels along a side of a latent position. Parts of a stream whose strides differ are
laid over one another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from icmbench.results.analysis_files import COLUMNS
from icmbench.results.curves import COLOURS, INK, PRINT, Theme, freeze_layout, matplotlib_settings
from icmbench.results.scores import ScoresError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HATCHES = ("", "///", "...", "\\\\\\", "xxx", "|||", "---")
FILLS: Sequence[str] = [colour for colour in COLOURS if colour != INK]
# The most panels that one figure of bit maps has.
MAX_PANELS = 12


def draw_bit_split(frame: pd.DataFrame, theme: Theme = PRINT) -> Figure:
    """Share of each part in the streams: one bar per codec point, with its mean bits per image beside it.

    Args:
        frame: the columns of "bit-split" in `COLUMNS`.
        theme: colours for print or for a page.

    Raises:
        ScoresError: the frame has no rows, or a column is missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    _require_columns(frame, "bit-split")
    table = frame.pivot_table("bits", ["codec", "point"], "part", "sum", fill_value=0, sort=False)
    totals = table.sum(axis=1)
    names = [theme.text(" ".join(labels)) for labels in table.index]
    with mpl.rc_context({**matplotlib_settings(theme), "hatch.linewidth": 0.5}):
        figure = Figure(figsize=(5.2, 1.1 + 0.28 * len(table)), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        left = np.zeros(len(table))
        handles: list[Any] = []
        for k, part in enumerate(table.columns):
            share = 100 * (table[part] / totals.where(totals > 0)).fillna(0).to_numpy()
            handles.append(axes.barh(range(len(table)), share, left=left, height=0.7, linewidth=0.6, **_fill(k)))
            left += share
        for k, total in enumerate(totals):
            axes.text(101, k, f"{total:,.0f} bits", va="center", fontsize="small")
        axes.set_yticks(range(len(table)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the bits (%)")
        # Room for the numbers of bits, which stand outside the axes.
        figure.set_layout_engine("constrained", w_pad=0.12)
        _add_legend(figure, handles, [str(part) for part in table.columns], theme)
        freeze_layout(figure)
        return figure


def draw_bit_maps(frame: pd.DataFrame, theme: Theme = PRINT) -> Figure:
    """Where in an image the bits go: one panel per codec, point and image, on one colour scale. After SLIM, figure 6.

    Args:
        frame: the columns of "bit-map" in `COLUMNS`; all but the first `MAX_PANELS` panels are left out.
        theme: colours for print or for a page.

    Raises:
        ScoresError: the frame has no rows, or a column is missing.
    """
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    _require_columns(frame, "bit-map")
    panels = [*frame.groupby(["codec", "point", "image"], sort=False)][:MAX_PANELS]
    grids = [_sum_bits(rows) for _, rows in panels]
    norm = Normalize(0, max(float(grid.max()) for grid in grids))
    with mpl.rc_context(matplotlib_settings(theme)):
        columns = min(len(panels), 3)
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(1.0 + 2.4 * columns, 0.3 + 2.0 * lines), dpi=72, layout="constrained", facecolor=theme.face)
        all_axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (name, _), grid in zip(all_axes, panels, grids, strict=False):
            axes.imshow(grid, cmap="cividis", norm=norm, interpolation="nearest")
            axes.set_title(theme.text(f"{name[0]} {name[1]}\n{name[2]}"), fontsize="small")
        for axes in all_axes:
            axes.set_axis_off()
        figure.colorbar(ScalarMappable(norm, "cividis"), ax=[*all_axes], pad=0.02, label="bits a latent place")
        freeze_layout(figure)
        return figure


def _sum_bits(rows: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The bits of one image at each position of its finest part, float64 (rows, columns); coarser parts are spread evenly."""
    strides = rows["stride"] if "stride" in rows else pd.Series(1, rows.index)
    layers = []
    for stride, part in rows.groupby(strides):
        layer = np.zeros((int(part["row"].max()) + 1, int(part["column"].max()) + 1))
        np.add.at(layer, (part["row"].to_numpy(int), part["column"].to_numpy(int)), part["bits"])
        scale = int(stride // strides.min())
        layers.append(np.kron(layer / scale**2, np.ones((scale, scale))))
    height, width = layers[0].shape
    return np.sum([np.pad(layer, ((0, height), (0, width)))[:height, :width] for layer in layers], axis=0)


def draw_energy_shares(frame: pd.DataFrame, theme: Theme = PRINT) -> Figure:
    """Share of each latent channel in the energy: one group of bars per codec point. After CADC, figure 6.

    Args:
        frame: the columns of "energy" in `COLUMNS`.
        theme: colours for print or for a page.

    Raises:
        ScoresError: the frame has no rows, or a column is missing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    _require_columns(frame, "energy")
    table = frame.pivot_table("energy", ["codec", "point"], "channel", "sum", fill_value=0, sort=False).sort_index(axis=1)
    shares = 100 * table.div(table.sum(axis=1), axis=0).fillna(0)
    with mpl.rc_context({**matplotlib_settings(theme), "hatch.linewidth": 0.5}):
        figure = Figure(figsize=(1.6 + 1.1 * min(len(table), 8), 3.2), dpi=72, layout="constrained", facecolor=theme.face)
        axes = figure.add_subplot()
        width = 0.8 / max(1, len(shares.columns))
        handles = [
            axes.bar(np.arange(len(shares)) + (k + 0.5) * width - 0.4, shares[channel], width, linewidth=0.6, **_fill(k))
            for k, channel in enumerate(shares.columns)
        ]
        names = ["\n".join(theme.text(str(label)) for label in labels) for labels in shares.index]
        axes.set_xticks(range(len(shares)), names, fontsize="small")
        axes.set_ylabel("share of the energy (%)")
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
        _add_legend(figure, handles, [f"channel {channel}" for channel in shares.columns], theme)
        freeze_layout(figure)
        return figure


def complexity_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Text table of parameters and multiply-accumulates by codec, stage and part, with each stage's sum. After SLIM, table 3.

    Args:
        frame: the columns of "complexity" in `COLUMNS`.

    Raises:
        ScoresError: the frame has no rows, or a column is missing.
    """
    _require_columns(frame, "complexity")
    rows = []
    for (codec, stage), parts in frame.groupby(["codec", "stage"], sort=False):
        sums = parts[["parameters", "gmac"]].sum()
        listed = [(part.part, part.parameters, part.gmac) for part in parts.itertuples()]
        listed += [("all", sums["parameters"], sums["gmac"])] if len(parts) > 1 else []
        rows += [
            {"Codec": codec, "Stage": stage, "Part": part, "Parameters (M)": f"{n / 1e6:.2f}", "MACs (G)": f"{gmac:.2f}"}
            for part, n, gmac in listed
        ]
    return pd.DataFrame(rows)


# Title and function of each analysis that has a figure; the names are also those of the files.
FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame, Theme], Figure]]] = {
    "bit-split": ("What the bits are spent on", draw_bit_split),
    "bit-map": ("Where the bits are spent", draw_bit_maps),
    "energy": ("Energy by latent channel", draw_energy_shares),
}


def _require_columns(frame: pd.DataFrame, name: str) -> None:
    missing = [column for column in COLUMNS[name] if column not in frame]
    if missing or not len(frame):
        raise ScoresError(f"{name} needs rows with {', '.join(COLUMNS[name])}; missing: {', '.join(missing) or 'rows'}")


def _fill(k: int) -> dict[str, Any]:
    """The look of the k-th part: parts differ in colour first, and in hatching once the colours repeat."""
    return {"color": FILLS[k % len(FILLS)], "hatch": HATCHES[k // len(FILLS) % len(HATCHES)], "edgecolor": "white"}


def _add_legend(figure: Figure, handles: Sequence[Any], names: Sequence[str], theme: Theme) -> None:
    legend = figure.legend(handles, [*map(str, range(len(handles)))], loc="outside lower center", ncols=min(len(handles), 4))
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(theme.text(name))  # As labels, matplotlib would hide names that begin with an underscore.
