"""How a task's drop goes with the feature difference of the same reconstructions, codec by codec.

    layers (task `layers`) ----> feature difference at each rate point --+
    any other task ------------> score lost against the uncompressed ---+--> Pearson, Spearman over a codec's rate points

A codec whose features stay closer but whose task drops more shows up here: its correlation is weak, or its slope differs.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from icmbench.results.scores import LAYER, Scores, ceiling_value, codec_names, curve_keys, curve_points

CORRELATION_COLUMNS = [
    "codec", "dataset", "task", "model", "metric", "layer", "points", "pearson", "spearman", "slope", "reference",
]  # fmt: skip
# Two points always lie on a line.
MIN_POINTS = 3


def correlation_frame(scores: Scores) -> pd.DataFrame:
    """Correlation of feature difference with task drop.

    Args:
        scores: normalised scores. Only tasks with an uncompressed score, on a dataset that the layers were computed on, take part.

    Returns:
        One row per codec, task metric and layer, columns `CORRELATION_COLUMNS`. `layer` "mean" is the mean over all layers.
        `pearson` and `spearman` are taken over the codec's rate points, NaN with fewer than three points or if either side does not
        vary. `slope` is the task units lost for each 0.1 of feature difference (least squares).
    """
    is_layer = scores["metric"].str.fullmatch(LAYER)
    layered = scores[is_layer]
    differences: dict[tuple[str, str], pd.DataFrame] = {}  # By dataset and codec; all keys of a dataset are compared with the same.
    records = []
    for key in curve_keys(scores[~is_layer]):
        rows = key.rows(scores)
        ceiling = ceiling_value(rows)
        layers_here = layered[layered["dataset"] == key.dataset]
        if ceiling is None or not len(layers_here):
            continue
        sign = 1.0 if rows["higher_is_better"].iloc[0] else -1.0
        for codec in codec_names(rows):
            if (key.dataset, codec) not in differences:
                differences[key.dataset, codec] = _differences(layers_here, codec)
            table = differences[key.dataset, codec]
            drop = sign * (ceiling - _values_by_point(rows, codec))
            *columns, lost = pd.concat([table, drop], axis=1).to_numpy().T
            for layer, difference in zip(table, columns, strict=True):
                pairs = np.stack([difference, lost], axis=1)[~np.isnan(difference) & ~np.isnan(lost)]
                names = {"codec": codec, "dataset": key.dataset, "task": key.task, "model": key.model, "metric": key.metric}
                numbers = dict(zip(("pearson", "spearman", "slope"), _correlate(pairs), strict=True))
                records.append(names | {"layer": layer, "points": len(pairs), "reference": key.reference} | numbers)
    return pd.DataFrame(records, columns=CORRELATION_COLUMNS)


def correlation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Text table of a `correlation_frame`: the mean over layers, and the layer that goes with the task most closely."""
    rows = []
    for (codec, dataset, task, _, metric, _), group in frame.groupby(
        ["codec", "dataset", "task", "model", "metric", "reference"], sort=False
    ):
        mean = group[group["layer"] == "mean"].iloc[0]
        layers = group[(group["layer"] != "mean") & group["pearson"].notna()]
        best = layers.loc[layers["pearson"].abs().idxmax()] if len(layers) else None
        rows.append(
            {
                "Codec": codec,
                "Dataset": dataset,
                "Task": task,
                "Metric": metric,
                "Points": str(mean["points"]),
                **{name: _correlation_text(mean[name.lower()]) for name in ("Pearson", "Spearman")},
                "Lost by 0.1": "" if pd.isna(mean["slope"]) else f"{mean['slope']:.3g}",
                "Closest layer": "" if best is None else f"{best['layer']} ({_correlation_text(best['pearson'])})",
            }
        )
    return pd.DataFrame(rows)


def _differences(layers: Scores, codec: str) -> pd.DataFrame:
    """Feature differences of a codec, one row per rate point, one column per layer, and their mean as the first column."""
    table = pd.DataFrame({layer: _values_by_point(rows, codec) for layer, rows in layers.groupby("metric", sort=False)})
    table.insert(0, "mean", table.mean(axis=1))
    return table


def _values_by_point(rows: Scores, codec: str) -> pd.Series:
    return curve_points(rows, codec).set_index("point")["value"]


def _correlate(pairs: np.ndarray) -> tuple[float, float, float]:
    """Pearson, Spearman and slope of pairs (difference, drop), float64 (n, 2)."""
    if len(pairs) < MIN_POINTS or not np.ptp(pairs, axis=0).all():
        return np.nan, np.nan, np.nan
    x, y = pairs.T
    # Spearman's is Pearson's of the ranks, where ties share their mean: the number of scipy.stats, which takes a second to load.
    spearman = np.corrcoef(pd.DataFrame(pairs).rank().to_numpy(), rowvar=False)[1, 0]
    return float(np.corrcoef(x, y)[0, 1]), float(spearman), float(0.1 * np.polyfit(x, y, 1)[0])


def _correlation_text(value: float) -> str:
    return "n/a" if pd.isna(value) else f"{value:+.3f}"
