"""How a task's drop goes with the feature difference of the same reconstructions, codec by codec.

    layers (task `layers`) ----> feature difference at each rate point --+
    any other task ------------> score lost against the uncompressed ---+--> Pearson, Spearman over a codec's rate points

A codec whose features stay closer but whose task drops more shows up here: its correlation is weak, or its slope is another.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from icmbench.results.scores import LAYER, ceiling, codecs, curve, keys

CORRELATIONS = [
    "codec", "dataset", "task", "model", "metric", "layer", "points", "pearson", "spearman", "slope", "reference",
]  # fmt: skip
MIN_POINTS = 3  # two points always lie on a line


def correlation_frame(scores: pd.DataFrame) -> pd.DataFrame:
    """Correlation of feature difference with task drop, columns `CORRELATIONS`: a row for each codec, task metric and layer.

    scores: a normalised frame. Only tasks on a dataset that the layers were computed on, with an uncompressed score, take part.
    `layer` is `mean` for the mean over all layers. pearson, spearman: over the codec's rate points, NaN with fewer than three or
    where either does not vary. slope: task units lost for each 0.1 of feature difference (least squares).
    """
    layered = scores[scores["metric"].str.fullmatch(LAYER)]
    records = []
    for key in keys(scores[~scores["metric"].str.fullmatch(LAYER)]):
        rows = key.rows(scores)
        top = ceiling(rows)
        mine = layered[layered["dataset"] == key.dataset]
        if top is None or not len(mine):
            continue
        sign = 1.0 if rows["higher_is_better"].iloc[0] else -1.0
        for codec in codecs(rows):
            drop = sign * (top - curve(rows, codec).set_index("point")["value"])
            layers = {name: curve(some, codec).set_index("point")["value"] for name, some in mine.groupby("metric", sort=False)}
            table = pd.DataFrame(layers)
            table.insert(0, "mean", table.mean(axis=1))
            for layer, difference in table.items():
                both = pd.concat([difference, drop], axis=1).dropna().to_numpy()
                place = {"codec": codec, "dataset": key.dataset, "task": key.task, "model": key.model, "metric": key.metric}
                numbers = dict(zip(("pearson", "spearman", "slope"), _related(both), strict=True))
                records.append(place | {"layer": layer, "points": len(both), "reference": key.reference} | numbers)
    return pd.DataFrame(records, columns=CORRELATIONS)


def correlation_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Text table: the mean over layers, and the layer that goes with the task most closely."""
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
                **{name: _text(mean[name.lower()]) for name in ("Pearson", "Spearman")},
                "Lost by 0.1": "" if pd.isna(mean["slope"]) else f"{mean['slope']:.3g}",
                "Closest layer": "" if best is None else f"{best['layer']} ({_text(best['pearson'])})",
            }
        )
    return pd.DataFrame(rows)


def _related(both: np.ndarray) -> tuple[float, float, float]:
    """Pearson, Spearman and slope of (n, 2) of (difference, drop)."""
    if len(both) < MIN_POINTS or not np.ptp(both, axis=0).all():
        return np.nan, np.nan, np.nan
    x, y = both.T
    return float(np.corrcoef(x, y)[0, 1]), float(spearmanr(x, y).statistic), float(0.1 * np.polyfit(x, y, 1)[0])


def _text(value: float) -> str:
    return "n/a" if pd.isna(value) else f"{value:+.3f}"
