"""What is missing of an experiment: the units of work, and how many images of each part they hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from icmbench.harness.processes.progress import Workload
from icmbench.harness.work.activity import Part
from icmbench.harness.work.bench import Bench
from icmbench.harness.work.loop import WorkUnit
from icmbench.harness.work.series import AnySeries

# By task label and name of the series, the images without a prediction.
Missing = Mapping[tuple[str, str], frozenset[str]]


def find_missing(bench: Bench, missing_images: Callable[[str, AnySeries], Iterable[str]]) -> Missing:
    """The images that each task has no prediction of, for every series that it sees.

    Args:
        bench: the experiment.
        missing_images: tells the images without a prediction, by task label and series.
    """
    return {
        (label, series.name): frozenset(missing_images(label, series)) for label in bench.tasks for series in bench.series_of(label)
    }


def incomplete_units(bench: Bench, units: Sequence[WorkUnit], missing: Missing) -> list[WorkUnit]:
    """The units in which something is missing."""
    images: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # By dataset and name of the series.
    for (label, name), ids in missing.items():
        images[bench.dataset_of(label), name].update(ids)
    return [
        unit
        for unit in units
        if any(not images[unit.block.dataset, bench.series[k].name].isdisjoint(unit.block.ids) for k in unit.series)
    ]


def measure_workload(bench: Bench, units: Sequence[WorkUnit], missing: Missing, costs: Mapping[str, float]) -> Workload:
    """Count what is to be done in some units.

    Args:
        bench: the experiment.
        units: what is going to be computed.
        missing: as `find_missing` returns it.
        costs: measured seconds per image, by name of the series for coding, and by label of the task.
    """
    parts: Counter[Part] = Counter()
    open_units: Counter[tuple[str, str]] = Counter()
    for unit in units:
        dataset, ids = unit.block.dataset, unit.block.ids
        for k in unit.series:
            series = bench.series[k]
            open_units[dataset, series.name] += 1
            to_code: set[str] = set()
            for label in bench.task_labels(dataset):
                images = missing.get((label, series.name), frozenset()).intersection(ids)
                parts[Part.of(dataset, series, label)] += len(images)
                to_code |= images
            if not series.is_original:
                parts[Part.of(dataset, series)] += len(to_code)
    parts = +parts  # Without the parts of which nothing is missing.
    by_name = {Part.of(dataset, series): series.name for dataset in bench.datasets for series in bench.series}
    known = {part: costs.get(part.task or by_name[part]) for part in parts}
    return Workload(
        sum(unit.images for unit in units), parts, open_units, {part: cost for part, cost in known.items() if cost is not None}
    )
