"""From the shards of a run to scores.csv: predictions -> statistics -> aggregate, one row a metric."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from icmbench.harness.bench import Bench
from icmbench.harness.shards import PREDICTION, Block, Series, cell_name, digest, prediction_name
from icmbench.harness.store import from_table
from icmbench.tasks.base import Prediction, Task

COLUMNS = [
    "codec", "point", "dataset", "task", "model", "metric", "value", "low", "high", "unit", "higher_is_better", "reference",
    "realisation", "bpp", "payload_bpp", "mean_image_bpp", "expected", "scored", "empty", "failed", "limited", "encode_seconds",
    "decode_seconds", "task_seconds",
]  # fmt: skip


@dataclass
class Evidence:
    """All that a task has on one series: predictions in the order of the task's ids, and the streams of the same images."""

    ids: list[str]
    predictions: list[Prediction]
    seconds: float
    streams: pd.DataFrame | None


class Missing(Exception):
    """Cells that are not there, by name."""

    def __init__(self, cells: list[str]) -> None:
        super().__init__(", ".join(cells))
        self.cells = cells


def score(bench: Bench) -> tuple[pd.DataFrame, list[str]]:
    """The scores frame (columns `COLUMNS`) of every complete series and task, and the names of the cells that are missing."""
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for label, task in bench.tasks.items():
        targets: list[Any] | None = None
        for series in bench.series:
            if series.codec is None and task.needs_originals:
                continue
            try:
                evidence = gather(bench, label, series)
            except Missing as error:
                missing += error.cells
                continue
            if series.codec is None and task.reference == "original":
                targets = task.pseudo_targets(evidence.predictions)
            elif targets is None and task.reference == "labels":
                targets = task.targets(evidence.ids)
            if targets is not None:
                rows += _rows(bench, label, task, series, evidence, targets)
    return pd.DataFrame(rows, columns=COLUMNS), missing


def gather(bench: Bench, label: str, series: Series) -> Evidence:
    """Read one task's predictions on one series. Raises Missing with the names of all cells that are not there."""
    ids: list[str] = []
    predictions: list[Prediction] = []
    seconds: list[float] = []
    streams: list[pd.DataFrame] = []
    missing: list[str] = []
    for block, mine, file, stream in shards(bench, label, series):
        if file is None or not bench.store.exists(file):
            missing.append(f"{cell_name(block, series)} / {label}")
            continue
        table = bench.store.read_table(file)
        names = [name for name in table.column_names if name not in dict(PREDICTION)]
        ids += mine
        predictions += from_table(table, names)
        seconds += table.column("seconds").to_pylist()
        if stream is not None:
            streams.append(stream.loc[mine])
    if missing:
        raise Missing(missing)
    frame = pd.concat(streams) if streams else None
    return Evidence(ids, predictions, float(np.mean(seconds)), frame)


def shards(bench: Bench, label: str, series: Series) -> Iterator[tuple[Block, list[str], str | None, pd.DataFrame | None]]:
    """Blocks that a task scores, with the ids, the prediction shard's name (None while it cannot be known) and the streams."""
    task = bench.tasks[label]
    dataset = next(block.dataset for block in bench.experiment.tasks if block.label == label)
    for block in bench.blocks(dataset):
        mine = bench.scored(label, block)
        if not mine:
            continue
        sources = bench.sources(block, compute=False)
        stream = bench.streams(block, series) if sources is not None and series.codec is not None else None
        if sources is None or (series.codec is not None and stream is None):
            yield block, mine, None, None
            continue
        pixels = [sources.sha256[i] for i in mine] if stream is None else list(stream.loc[mine, "sha256"])
        yield block, mine, prediction_name(block, mine, sources, series, label, task, pixels), stream


def _rows(bench: Bench, label: str, task: Task, series: Series, evidence: Evidence, targets: list[Any]) -> Iterator[dict[str, Any]]:
    values = task.aggregate(task.statistics(evidence.predictions, targets))
    block = next(block for block in bench.experiment.tasks if block.label == label)
    common = {
        "codec": series.label,
        "point": series.point,
        "dataset": block.dataset,
        "task": label,
        "model": block.model["name"] if block.model else "",
        "reference": "source" if task.needs_originals and task.annotation is None else task.reference,
        "realisation": _realisation(series, evidence),
        "expected": len(task.ids),
        "scored": len(evidence.ids),
        "empty": sum(task.is_empty(prediction) for prediction in evidence.predictions),
        "failed": len(task.ids) - len(evidence.ids),
        "limited": task.dataset.limit is not None,
        "task_seconds": evidence.seconds,
        **_rates(evidence.streams),
    }
    for metric in task.metrics:
        yield {
            **dict.fromkeys(COLUMNS),
            **common,
            "metric": metric.name,
            "value": values[metric.name],
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
        }


def _realisation(series: Series, evidence: Evidence) -> str:
    """Empty where pixels follow from bytes; else the seed and, where decoding is not deterministic, a digest of the pixels."""
    parts = [] if series.seed is None else [f"seed={series.seed}"]
    if not series.deterministic and evidence.streams is not None:
        parts.append(digest(list(evidence.streams["sha256"]))[:8])
    return " ".join(parts)


def _rates(streams: pd.DataFrame | None) -> dict[str, float | None]:
    """Bits of the scored images' streams over their source pixels, and seconds an image."""
    if streams is None:
        return {}
    pixels = streams["height"].astype("int64") * streams["width"]
    bits = 8 * streams["bytes"]
    payload = None
    if streams["parts"].notna().all():
        headers = streams["parts"].map(lambda parts: json.loads(parts).get("header", 0))
        payload = float((bits - headers).sum() / pixels.sum())
    return {
        "bpp": float(bits.sum() / pixels.sum()),
        "payload_bpp": payload,
        "mean_image_bpp": float((bits / pixels).mean()),
        "encode_seconds": float(streams["encode_seconds"].mean()),
        "decode_seconds": float(streams["decode_seconds"].mean()),
    }
