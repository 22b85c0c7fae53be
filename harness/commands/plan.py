"""`icmbench plan`: which cells are missing, how long they take, and what the standard sets would cost.

All estimates rest on what the run folder holds of the experiment's codec points and tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from icmbench.harness.derive.gathering import Gatherer
from icmbench.harness.derive.measuring import ImageCost, measure
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.series import Series

COLUMNS = ["codec", "point", "seed", "dataset", "task", "cells", "missing", "images", "seconds", "bytes"]


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


def plan(bench: Bench) -> pd.DataFrame:
    """Count the missing cells of an experiment and estimate their time.

    Args:
        bench: the experiment with its run folder.

    Returns:
        One row per series and task, with the columns `COLUMNS`: `cells` and `missing` are numbers of cells, `images` the number of
        images in the missing cells, `seconds` the estimated time of one worker for them and `bytes` what will be written (NaN if
        nothing has been measured). Coding is part of the first task of a series, because one decoding serves all tasks.
    """
    costs = measure(bench)
    gatherer = Gatherer(bench)
    blocks = {dataset: bench.blocks(dataset) for dataset in bench.datasets}
    rows = []
    for series in bench.series:
        coded: set[str] = set()  # Images whose coding an earlier task of this series includes.
        for section in bench.experiment.tasks:
            if series not in bench.series_of(section.label):
                continue
            missing = {*gatherer.missing(section.label, series)}
            scored = frozenset(bench.tasks[section.label].ids)
            cells = [block for block in blocks[section.dataset] if not scored.isdisjoint(block.ids)]
            seconds, size = _cost_of(len(missing), costs.task.get(section.label))
            if missing and isinstance(series, Series):
                to_code = {f"{section.dataset}/{image_id}" for image_id in missing} - coded
                coding_seconds, coding_size = _cost_of(len(to_code), costs.codec.get(series.name))
                seconds, size = seconds + coding_seconds, size + coding_size
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
                    "bytes": size,
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _cost_of(images: int, cost: ImageCost | None) -> tuple[float, float]:
    """Seconds and bytes of so many images; NaN for some of which nothing was measured."""
    if not images:
        return 0.0, 0.0
    return (images * cost.seconds, images * cost.bytes) if cost else (float("nan"), float("nan"))


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
    for section in bench.experiment.tasks:
        passes[section.label] = [costs.task.get(section.label)] * len(bench.series_of(section.label))
    rows = []
    for part, pass_costs in passes.items():
        for standard_set in STANDARD_SETS if costs.codec or costs.task else ():
            totals = [
                cost.of_images(standard_set.images, standard_set.megapixels) if cost else (float("nan"), float("nan"))
                for cost in pass_costs
            ]
            seconds, size = (sum(values) for values in zip(*totals, strict=True))
            row = {"part": part, "points": len(pass_costs), "set": standard_set.name, "images": standard_set.images}
            rows.append(row | {"seconds": seconds, "bytes": size})
    return pd.DataFrame(rows, columns=["part", "points", "set", "images", "seconds", "bytes"])
