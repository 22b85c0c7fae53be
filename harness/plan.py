"""`icmbench plan`: which cells are missing, and how long they take judging by what is already measured."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from icmbench.harness.bench import Bench
from icmbench.harness.scoring import shards
from icmbench.harness.shards import Block

COLUMNS = ["codec", "point", "seed", "dataset", "task", "cells", "missing", "images", "seconds"]


@dataclass(frozen=True)
class Measured:
    """Median seconds an image, by codec point (encode + decode) and by task."""

    codec: dict[str, float]
    task: dict[str, float]


def plan(bench: Bench) -> pd.DataFrame:
    """One row a series and task: its cells, those missing, their images, and the estimated seconds (NaN: nothing measured yet).

    The seconds of coding stand on the first task of a series, since one decoding serves all tasks.
    """
    measured = _measure(bench)
    rows = []
    for series in bench.series:
        coded: set[Block] = set()
        for block in bench.experiment.tasks:
            task = bench.tasks[block.label]
            if series.codec is None and task.needs_originals:
                continue
            cells = list(shards(bench, block.label, series))
            missing = [(part, ids) for part, ids, file, _ in cells if file is None or not bench.store.exists(file)]
            seconds = sum(len(ids) for _, ids in missing) * measured.task.get(block.label, float("nan")) if missing else 0.0
            if series.codec is not None:
                new = {part: len(part.ids) for part, _ in missing if part not in coded}
                seconds += sum(new.values()) * measured.codec.get(series.name, float("nan")) if new else 0.0
                coded |= set(new)
            rows.append(
                {
                    "codec": series.label,
                    "point": series.point,
                    "seed": series.seed,
                    "dataset": block.dataset,
                    "task": block.label,
                    "cells": len(cells),
                    "missing": len(missing),
                    "images": sum(len(ids) for _, ids in missing),
                    "seconds": seconds,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _measure(bench: Bench) -> Measured:
    codec: dict[str, list[float]] = {}
    task: dict[str, list[float]] = {}
    for series in bench.series:
        for block in bench.experiment.tasks:
            if series.codec is None and bench.tasks[block.label].needs_originals:
                continue
            for _, _, file, stream in shards(bench, block.label, series):
                if stream is not None:
                    codec.setdefault(series.name, []).extend(stream["encode_seconds"] + stream["decode_seconds"])
                if file is not None and bench.store.exists(file):
                    seconds = bench.store.read_table(file, ["seconds"]).column("seconds").to_pylist()
                    task.setdefault(block.label, []).extend(seconds)
    return Measured(_medians(codec), _medians(task))


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(pd.Series(values).median()) for name, values in samples.items()}
