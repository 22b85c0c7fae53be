"""`icmbench plan`: which cells are missing, how long they take, and what the standard sets would, judging by what is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from icmbench.harness.derive.scoring import shards
from icmbench.harness.store.shards import ImageBlock
from icmbench.harness.store.store import safe_name
from icmbench.harness.work.bench import Bench

COLUMNS = ["codec", "point", "seed", "dataset", "task", "cells", "missing", "images", "seconds"]


@dataclass(frozen=True)
class StandardSet:
    """A set that papers score on: how many images, and their mean size in megapixels."""

    name: str
    images: int
    megapixels: float


STANDARD_SETS = (
    StandardSet("COCO val2017", 5000, 0.27),
    StandardSet("Flickr30K test", 1000, 0.18),
    StandardSet("ADE20K val", 2000, 0.35),  # short side 512
    StandardSet("ImageNet val", 50_000, 0.20),
)


@dataclass(frozen=True)
class Rate:
    """What one image costs, measured on `images` of them: seconds of one worker (median) and bytes in the run folder."""

    images: int
    seconds: float
    bytes: float
    megapixels: float = float("nan")  # mean size of the images; NaN where the cost does not depend on it

    def of(self, target: StandardSet) -> tuple[float, float]:
        """Seconds and bytes of a whole set."""
        times = target.images * (1.0 if math.isnan(self.megapixels) else target.megapixels / self.megapixels)
        return times * self.seconds, times * self.bytes


@dataclass(frozen=True)
class Measured:
    """By codec point: encoding + decoding. By task: predicting, for each reconstruction and for the originals."""

    codec: dict[str, Rate]
    task: dict[str, Rate]

    def seconds(self, kind: str, name: str) -> float:
        rate = getattr(self, kind).get(name)
        return rate.seconds if rate else float("nan")


def plan(bench: Bench) -> pd.DataFrame:
    """One row a series and task: its cells, those missing, their images, and the estimated seconds (NaN: nothing measured yet).

    The seconds of coding stand on the first task of a series, since one decoding serves all tasks.
    """
    found = measure(bench)
    rows = []
    for series in bench.series:
        coded: set[ImageBlock] = set()
        for block in bench.experiment.tasks:
            task = bench.tasks[block.label]
            if series.codec is None and task.needs_originals:
                continue
            cells = list(shards(bench, block.label, series))
            missing = [(part, ids) for part, ids, file, _ in cells if file is None or not bench.store.exists(file)]
            seconds = sum(len(ids) for _, ids in missing) * found.seconds("task", block.label) if missing else 0.0
            if series.codec is not None:
                new = {part: len(part.ids) for part, _ in missing if part not in coded}
                seconds += sum(new.values()) * found.seconds("codec", series.name) if new else 0.0
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


def standard(bench: Bench) -> pd.DataFrame:
    """What the experiment's points and tasks would cost on the four standard sets, judged by the images measured so far.

    One row a codec (all its points and seeds) or task (of all reconstructions and originals) and set; columns part, points, set,
    images, seconds (of one worker) and bytes. NaN where a point is not measured. Coding and streams grow with the pixels, tasks
    with the images. Empty where nothing is measured.
    """
    found = measure(bench)
    points: dict[str, list[str]] = {}
    for series in bench.series:
        if series.codec is not None:
            points.setdefault(series.label, []).append(series.name)
    parts = {label: [found.codec.get(name) for name in names] for label, names in points.items()}
    shown = sum(map(len, points.values()))
    for block in bench.experiment.tasks:
        parts[block.label] = [found.task.get(block.label)] * (shown + (not bench.tasks[block.label].needs_originals))
    rows = []
    for part, rates in parts.items():
        for target in STANDARD_SETS if found.codec or found.task else ():
            costs = [rate.of(target) if rate else (float("nan"), float("nan")) for rate in rates]
            seconds, size = (sum(values) for values in zip(*costs, strict=True))
            row = {"part": part, "points": len(rates), "set": target.name, "images": target.images}
            rows.append(row | {"seconds": seconds, "bytes": size})
    return pd.DataFrame(rows, columns=["part", "points", "set", "images", "seconds", "bytes"])


def measure(bench: Bench) -> Measured:
    """Rates of everything that the run folder holds of these points and tasks, whatever images it was measured on."""
    codec: dict[str, Rate] = {}
    task: dict[str, Rate] = {}
    datasets = {block.label: block.dataset for block in bench.experiment.tasks}
    for series in bench.series:
        folders = [f"streams/{safe_name(dataset)}/{series.folder}" for dataset in sorted(set(datasets.values()))]
        columns = ["encode_seconds", "decode_seconds", "height", "width"]
        frame, size = _shards(bench, folders, columns)
        if len(frame):
            seconds = (frame["encode_seconds"] + frame["decode_seconds"]).median()
            pixels = (frame["height"].astype("float64") * frame["width"]).mean()
            codec[series.name] = Rate(len(frame), float(seconds), size / len(frame), float(pixels / 1e6))
    for label, dataset in datasets.items():
        folders = [f"predictions/{safe_name(dataset)}/{safe_name(label)}/{series.folder}" for series in bench.series]
        frame, size = _shards(bench, folders, ["seconds"])
        if len(frame):
            task[label] = Rate(len(frame), float(frame["seconds"].median()), size / len(frame))
    return Measured(codec, task)


def _shards(bench: Bench, folders: list[str], columns: list[str]) -> tuple[pd.DataFrame, int]:
    """Columns of all shards in some folders, without images that failed, and the bytes of the files."""
    names = [name for folder in folders for name in bench.store.names(folder) if name.endswith(".parquet")]
    tables = [bench.store.read_table(name, [*columns, "error"]).to_pandas() for name in names]
    if not tables:
        return pd.DataFrame(columns=columns), 0
    frame = pd.concat(tables)
    return frame[frame["error"].isna()], sum(bench.store.size(name) for name in names)
