"""What runs have in common and what each adds: the experiment of a merge.

    codecs    by label, united point by point; one label and two codecs is an error
    tasks     by label; one label and two tasks is an error
    the rest  of the first run; what the others have otherwise is told

Nothing is read here but what runs recorded of themselves, and nothing is written.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import CodecSection, Experiment, TaskSection
from icmbench.harness.derive.merged_images import MergedImages, unite_images
from icmbench.harness.derive.recorded import RecordedRun
from icmbench.harness.derive.stand_ins import RecordedBuilder
from icmbench.harness.store.pack_export import RecordedSeries

# Keys of an experiment that decide its tables, beside datasets, codecs and tasks. The first run's count.
TABLE_KEYS = ("name", "bootstrap", "method", "envelope", "fail_on_error", "limit", "published")
RENAME = "give one another `label` and run it again, which computes nothing that is stored"

Place = tuple[str, int | None]  # Label of a rate point, and the seed.


@dataclass(frozen=True)
class MergePlan:
    """A merge before anything is written. Picklable.

    Attributes:
        runs: what is merged.
        experiment: what the merged run is about.
        series: points and seeds of all codecs, each with the position of the first run that has it.
        images: the images by dataset.
        notes: sentences on what differs between the runs.
    """

    runs: tuple[RecordedRun, ...]
    experiment: Experiment
    series: tuple[tuple[RecordedSeries, int], ...]
    images: dict[str, MergedImages]
    notes: tuple[str, ...]

    def runs_with_task(self, label: str) -> list[RecordedRun]:
        """The runs that have a task."""
        return [run for run in self.runs if label in run.tasks]


def plan_merge(runs: Sequence[RecordedRun], common: bool = False) -> MergePlan:
    """Unite what runs recorded.

    Args:
        runs: the runs, at least one.
        common: whether datasets of which the runs have different images are cut to the images that all of them have.

    Raises:
        UserError: the runs have different images, or one label for two codecs or tasks.
    """
    notes: list[str] = []
    names = list(dict.fromkeys(name for run in runs for name in run.datasets))
    images = {name: unite_images(runs, name, common) for name in names}
    sections, series = _unite_codecs(runs, notes)
    tasks = _unite_tasks(runs, notes)
    for each in images.values():
        if each.counts:
            sizes = ", ".join(f"{count} of {address}" for address, count in each.counts.items())
            notes.append(f"dataset {each.dataset!r}: {len(each.ids)} images in common, of {sizes}")
    first = runs[0].experiment
    for name, twin in itertools.combinations(names, 2):
        apart = not any({name, twin} <= {*run.datasets} for run in runs)
        if apart and sorted(images[name].sha256.values()) == sorted(images[twin].sha256.values()):
            notes.append(f"datasets {name!r} and {twin!r} hold the same images: give them one name to compare the codecs of both")
    for key in TABLE_KEYS:
        for run in runs[1:]:
            if getattr(run.experiment, key) != getattr(first, key):
                values = f"{getattr(first, key)!r} in {runs[0].address} and {getattr(run.experiment, key)!r} in {run.address}"
                notes.append(f"{key} is {values}: the former counts")
    changes = {
        "datasets": {name: runs[images[name].source or 0].experiment.datasets.get(name) or _section(runs, name) for name in names},
        "codecs": sections,
        "tasks": tasks,
        "anchor": _anchor(runs, notes),
        "store": None,
    }
    return MergePlan(tuple(runs), first.model_copy(update=changes), tuple(series), images, tuple(notes))


def _section(runs: Sequence[RecordedRun], name: str) -> dict[str, Any]:
    return next(run.experiment.datasets[name] for run in runs if name in run.datasets)


def _anchor(runs: Sequence[RecordedRun], notes: list[str]) -> str | None:
    """The anchor of the first run that has one; a run without its codec can have none."""
    anchors: dict[str, str] = {}
    for run in runs:
        if run.experiment.anchor is not None:
            anchors.setdefault(run.experiment.anchor, run.address)
    named = list(anchors.items())
    for anchor, address in named[1:]:
        notes.append(f"anchor is {named[0][0]!r} in {named[0][1]} and {anchor!r} in {address}: the former counts")
    return named[0][0] if named else None


# Codecs.


def _unite_codecs(runs: Sequence[RecordedRun], notes: list[str]) -> tuple[list[CodecSection], list[tuple[RecordedSeries, int]]]:
    sections, series = [], []
    for label in dict.fromkeys(section.label for run in runs for section in run.experiment.codecs):
        holders = [(k, run, _codec_section(run, label)) for k, run in enumerate(runs) if _codec_section(run, label)]
        known: dict[Place, tuple[RecordedSeries, int]] = {}
        for k, run, section in holders:
            _refuse_other_codec(label, runs, known, run)
            first = holders[0][2]
            assert first is not None and section is not None
            if section.set != first.set:
                options = f"{first.set!r} in {holders[0][1].address} and {section.set!r} in {run.address}"
                notes.append(f"codec {label!r} is one by its fingerprint, but has options {options}")
            for each in run.series_of(label):
                known.setdefault((each.point, each.seed), (each, k))
        _refuse_equal_points(label, known)
        points = list(dict.fromkeys(point for point, _ in known))
        seeds = list(dict.fromkeys(seed for _, seed in known))
        series += [known[point, seed] for point in points for seed in seeds if (point, seed) in known]
        given = {each.point: each.given for each, _ in known.values()}
        named_seeds = [seed for seed in seeds if seed is not None]
        changes = {"points": [given[point] for point in points], "seeds": named_seeds or None}
        section = holders[0][2]
        assert section is not None
        sections.append(section.model_copy(update=changes))
    return sections, series


def _codec_section(run: RecordedRun, label: str) -> CodecSection | None:
    return next((section for section in run.experiment.codecs if section.label == label), None)


def _refuse_other_codec(
    label: str, runs: Sequence[RecordedRun], known: dict[Place, tuple[RecordedSeries, int]], run: RecordedRun
) -> None:
    """Raise UserError if a run means another codec by a label than those before it."""
    own = run.series_of(label)
    for each in own if known else ():
        other, k = next(iter(known.values()))
        if other.codec != each.codec:
            raise UserError(
                f"codec {label!r} is {other.codec!r} in {runs[k].address} and {each.codec!r} in {run.address}: {RENAME}"
            )
        if other.estimated != each.estimated:
            estimating = run.address if each.estimated else runs[k].address
            raise UserError(
                f"codec {label!r} writes real bytes in one of {runs[k].address} and {run.address}, and estimates its rate in the "
                f"other, {estimating}: {RENAME}"
            )
        if (other.seed is None) != (each.seed is None):
            raise UserError(
                f"codec {label!r} has `seeds` in one of {runs[k].address} and {run.address} and none in the other: {RENAME}"
            )
    shared = [each for each in own if (each.point, each.seed) in known]
    for each in shared:
        other, k = known[each.point, each.seed]
        if other.fingerprint != each.fingerprint or other.deterministic != each.deterministic:
            fact = first_difference(other.fingerprint, each.fingerprint, runs[k].address, run.address)
            raise UserError(
                f"codec {label!r} at {each.point} is another one in {run.address} than in {runs[k].address}: {fact}: {RENAME}"
            )
    if known and not shared:
        _compare_other_points(label, [(each, runs[k]) for each, k in known.values()], [(each, run) for each in own])


def _compare_other_points(
    label: str, first: Sequence[tuple[RecordedSeries, RecordedRun]], second: Sequence[tuple[RecordedSeries, RecordedRun]]
) -> None:
    """Raise UserError unless points of two runs that share none can be taken for those of one codec.

    They can if the codec, made here, has the recorded fingerprint at all of them, or if what differs between their fingerprints is
    what the points say, or differs within a run too.
    """
    if all(_is_here(series, run) for series, run in [*first, *second]):
        return
    facts = [[dict(flatten(parse(series.fingerprint))) for series, _ in part] for part in (first, second)]
    given = [{text for _, text in flatten([series.given, series.seed, series.point])} for series, _ in [*first, *second]]
    for key in sorted({key for part in facts for each in part for key in each}):
        values = [{each.get(key, "nothing") for each in part} for part in facts]
        explained = all(each.get(key) in told for each, told in zip([*facts[0], *facts[1]], given, strict=True))
        if values[0] != values[1] and not explained and max(map(len, values)) == 1:
            raise UserError(
                f"codec {label!r} has no point in common in {first[0][1].address} and {second[0][1].address}, and {key} is "
                f"{min(values[0])} in the one and {min(values[1])} in the other, so it cannot be told whether it is one codec: "
                f"merge where the codec itself can be made, or run one point of the one in the other too, or {RENAME}"
            )


def _is_here(series: RecordedSeries, run: RecordedRun) -> bool:
    try:
        return RecordedBuilder(run).codec(series).fingerprint == series.fingerprint
    except Exception:  # Codecs of other packages may raise anything where their files are absent.
        return False


def _refuse_equal_points(label: str, known: dict[Place, tuple[RecordedSeries, int]]) -> None:
    names: dict[tuple[str, int | None], str] = {}
    for each, _ in known.values():
        twin = names.setdefault((each.fingerprint, each.seed), each.point)
        if twin != each.point:
            raise UserError(f"codec {label!r}: {twin} and {each.point} have one fingerprint, so that they are one point: {RENAME}")


# Tasks.


def _unite_tasks(runs: Sequence[RecordedRun], notes: list[str]) -> list[TaskSection]:
    tasks: dict[str, tuple[TaskSection, RecordedRun]] = {}
    for run in runs:
        for section in run.experiment.tasks:
            first, holder = tasks.setdefault(section.label, (section, run))
            if holder is run:
                continue
            where = f"in {holder.address} and {run.address}"
            for key in ("name", "dataset", "reference"):
                a, b = getattr(first, key), getattr(section, key)
                if a != b:
                    raise UserError(f"task {section.label!r} has another `{key}` {where}, {a!r} and {b!r}: {RENAME}")
            parsed = holder.tasks[section.label], run.tasks[section.label]
            if parsed[0] != parsed[1]:
                texts = [json.dumps(each) for each in parsed]
                fact = first_difference(texts[0], texts[1], holder.address, run.address)
                raise UserError(f"task {section.label!r} is another one {where}: {fact}: {RENAME}")
            for key in ("set", "model"):
                a, b = getattr(first, key), getattr(section, key)
                if a != b:
                    notes.append(f"task {section.label!r} has another `{key}` {where}, {a!r} and {b!r}: the former scores all")
    return [section for section, _ in tasks.values()]


# Fingerprints.


def first_difference(first: str, second: str, first_name: str, second_name: str) -> str:
    """The first fact in which two fingerprints differ, as part of a sentence."""
    a, b = dict(flatten(parse(first))), dict(flatten(parse(second)))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            return f"{key} is {a.get(key, 'nothing')} in {first_name} and {b.get(key, 'nothing')} in {second_name}"
    return "their fingerprints are written differently, or only one of them decodes alike every time"


def parse(text: str) -> Any:
    """The facts of a fingerprint, also of those that it repeats as text; the text itself if it is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every value below a JSON value as text, with its dotted key."""
    if isinstance(value, str) and isinstance(parse(value), dict):
        value = parse(value)
    if isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flatten(item, f"{key}.{name}" if key else str(name))
    else:
        yield key or "fingerprint", json.dumps(value)
