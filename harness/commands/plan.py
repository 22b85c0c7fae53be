"""`icmbench plan`: which cells are missing, how long they take, and what the standard sets would cost.

All estimates rest on what the run folder holds of the experiment's codec points and tasks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import Series

COLUMNS = ["codec", "point", "seed", "dataset", "task", "cells", "missing", "images", "seconds"]


@dataclass(frozen=True)
class StandardSet:
    """A set of images on which papers report scores.

    Attributes:
        name: its usual name.
        images: number of images.
        megapixels: their mean size.
    """

    name: str
    images: int
    megapixels: float


STANDARD_SETS = (
    StandardSet("COCO val2017", 5000, 0.27),
    StandardSet("Flickr30K test", 1000, 0.18),
    StandardSet("ADE20K val", 2000, 0.35),  # With a short side of 512 pixels, as its models take them.
    StandardSet("ImageNet val", 50_000, 0.20),
)


@dataclass(frozen=True)
class ImageCost:
    """The measured cost of one image.

    Attributes:
        images: number of images that were measured.
        seconds: median time of one worker.
        bytes: mean size in the run folder.
        megapixels: mean size of the measured images; NaN if the cost does not grow with the size.
    """

    images: int
    seconds: float
    bytes: float
    megapixels: float = float("nan")

    def of_set(self, standard_set: StandardSet) -> tuple[float, float]:
        """Seconds and bytes of all images of a set."""
        scale = 1.0 if math.isnan(self.megapixels) else standard_set.megapixels / self.megapixels
        return standard_set.images * scale * self.seconds, standard_set.images * scale * self.bytes


@dataclass(frozen=True)
class MeasuredCosts:
    """Costs of everything that has been computed.

    Attributes:
        codec: cost of encoding and decoding, by series name.
        task: cost of one prediction, by task label.
    """

    codec: dict[str, ImageCost]
    task: dict[str, ImageCost]


def plan(bench: Bench) -> pd.DataFrame:
    """Count the missing cells of an experiment and estimate their time.

    Args:
        bench: the experiment with its run folder.

    Returns:
        One row per series and task, with the columns `COLUMNS`: `cells` and `missing` are numbers of cells, `images` the number of
        images in the missing cells, `seconds` the estimated time of one worker for them (NaN if nothing has been measured). The
        time of coding is part of the first task of a series, because one decoding serves all tasks.
    """
    costs = measure(bench)
    gatherer = Gatherer(bench)
    blocks = {dataset: bench.blocks(dataset) for dataset in bench.datasets}
    rows = []
    for series in bench.series:
        coded: set[str] = set()  # Images whose coding an earlier task of this series includes.
        for section in bench.experiment.tasks:
            if series.is_original and bench.tasks[section.label].needs_originals:
                continue
            missing = {*gatherer.missing(section.label, series)}
            scored = frozenset(bench.tasks[section.label].ids)
            cells = [block for block in blocks[section.dataset] if not scored.isdisjoint(block.ids)]
            seconds = len(missing) * _seconds(costs.task.get(section.label)) if missing else 0.0
            if missing and isinstance(series, Series):
                to_code = {f"{section.dataset}/{image_id}" for image_id in missing} - coded
                seconds += len(to_code) * _seconds(costs.codec.get(series.name)) if to_code else 0.0
                coded |= to_code
            rows.append(
                {
                    "codec": series.label,
                    "point": series.point,
                    "seed": series.seed,
                    "dataset": section.dataset,
                    "task": section.label,
                    "cells": len(cells),
                    "missing": sum(not missing.isdisjoint(block.ids) for block in cells) if missing else 0,
                    "images": len(missing),
                    "seconds": seconds,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _seconds(cost: ImageCost | None) -> float:
    return cost.seconds if cost else float("nan")


def estimate_standard_sets(bench: Bench) -> pd.DataFrame:
    """Estimate what the experiment's codec points and tasks would cost on `STANDARD_SETS`.

    The costs of coding and of streams grow with the number of pixels, those of tasks with the number of images.

    Args:
        bench: the experiment with its run folder.

    Returns:
        One row per codec (all its points and seeds) or task (all reconstructions and originals) and set. Columns: `part` (label of
        the codec or task), `points` (number of passes over the images), `set`, `images`, `seconds` (of one worker) and `bytes`.
        NaN if a point has not been measured. Empty if nothing has been measured.
    """
    costs = measure(bench)
    names: dict[str, list[str]] = {}
    for series in bench.series:
        if isinstance(series, Series):
            names.setdefault(series.label, []).append(series.name)
    passes = {label: [costs.codec.get(name) for name in series_names] for label, series_names in names.items()}
    reconstructions = sum(map(len, names.values()))  # Number of reconstructions of each image.
    for section in bench.experiment.tasks:
        on_originals = not bench.tasks[section.label].needs_originals
        passes[section.label] = [costs.task.get(section.label)] * (reconstructions + on_originals)
    rows = []
    for part, pass_costs in passes.items():
        for standard_set in STANDARD_SETS if costs.codec or costs.task else ():
            totals = [cost.of_set(standard_set) if cost else (float("nan"), float("nan")) for cost in pass_costs]
            seconds, size = (sum(values) for values in zip(*totals, strict=True))
            row = {"part": part, "points": len(pass_costs), "set": standard_set.name, "images": standard_set.images}
            rows.append(row | {"seconds": seconds, "bytes": size})
    return pd.DataFrame(rows, columns=["part", "points", "set", "images", "seconds", "bytes"])


def measure(bench: Bench) -> MeasuredCosts:
    """Measure costs from all stored rows of the experiment's codec points and tasks, also those of other images.

    Args:
        bench: the experiment with its store.
    """
    codec: dict[str, ImageCost] = {}
    task: dict[str, ImageCost] = {}
    for series in bench.series:
        if not isinstance(series, Series):
            continue
        streams = bench.lookup.collection(series)
        streams.refresh()
        if len(streams):
            columns = ["encode_seconds", "decode_seconds", "height", "width", "bytes"]
            frame = streams.facts(streams.all_rows(), columns).to_pandas()
            seconds = (frame["encode_seconds"] + frame["decode_seconds"]).median()
            pixels = (frame["height"].astype("float64") * frame["width"]).mean()
            codec[series.name] = ImageCost(len(frame), float(seconds), streams.stored_bytes() / len(frame), float(pixels / 1e6))
    for section in bench.experiment.tasks:
        predictions = bench.lookup.predictions_of(bench.tasks[section.label])
        predictions.refresh()
        if len(predictions):
            seconds = predictions.facts(predictions.all_rows(), ["seconds"]).to_pandas()["seconds"].median()
            task[section.label] = ImageCost(len(predictions), float(seconds), predictions.stored_bytes() / len(predictions))
    return MeasuredCosts(codec, task)
