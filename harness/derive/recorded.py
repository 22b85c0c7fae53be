"""A run as its folder records it.

    environment.json  ->  experiment, fingerprints of codec points and tasks
    images.parquet    ->  images and the hashes of their pixels

No plug-in of the run is made to read it, so that none need be here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.experiment import Experiment
from icmbench.harness.config.secrets import redact_values
from icmbench.harness.config.sections import first_error
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.inventory import describe_all, parse_fingerprint, take_inventory
from icmbench.harness.store.pack_export import IMAGES, RecordedSeries
from icmbench.harness.store.parquet_files import read_table
from icmbench.harness.store.references import ENVIRONMENT, store_of_run


@dataclass(frozen=True)
class RecordedRun:
    """A run folder that takes part in a merge. Picklable.

    Attributes:
        address: the folder as the user named it.
        folder: its files.
        store: its store.
        experiment: its experiment; relative paths start at a folder of this machine.
        series: its codec points and seeds.
        tasks: fingerprints of its tasks by label, parsed where they are JSON.
        images: SHA-256 of source pixels by dataset and image id; None for an image that was not read.
        counts: how many images each dataset has.
        environment: the content of environment.json.
    """

    address: str
    folder: Folder
    store: Folder
    experiment: Experiment
    series: tuple[RecordedSeries, ...]
    tasks: Mapping[str, Any]
    images: Mapping[str, Mapping[str, str | None]]
    counts: Mapping[str, int]
    environment: Mapping[str, Any]

    def hashes(self, dataset: str) -> dict[str, str]:
        """SHA-256 of the source pixels by image id; images that were not read are left out."""
        return {image_id: sha256 for image_id, sha256 in self.images.get(dataset, {}).items() if sha256}

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets that a task of the run uses."""
        used = {section.dataset for section in self.experiment.tasks}
        return [name for name in self.experiment.datasets if name in used]

    def has(self, label: str, point: str, seed: int | None) -> bool:
        """Whether the run has a codec at a rate point and seed."""
        return any((series.label, series.point, series.seed) == (label, point, seed) for series in self.series)

    def series_of(self, label: str) -> list[RecordedSeries]:
        """Points and seeds of one codec."""
        return [series for series in self.series if series.label == label]


def read_run(address: str, base: Path | None = None) -> RecordedRun:
    """Read what a run folder records.

    Args:
        address: the folder or its URL.
        base: where relative paths of the experiment start. By default where they did when it was run, if that folder is here, and
            otherwise the working directory.

    Raises:
        UserError: there is no run folder, or what it records is damaged.
        FormatError: another version of icmbench wrote it.
    """
    folder = Folder(address)
    record = folder.read_json(ENVIRONMENT)
    if not record:
        raise UserError(f"{address}: no run folder (no whole {ENVIRONMENT}); give the --out of `icmbench run`")
    where = f"{address}: {ENVIRONMENT}"
    if base is None:
        recorded = record.get("folder")
        base = Path(recorded) if isinstance(recorded, str) and Path(recorded).is_dir() else Path()
    try:
        experiment = Experiment.model_validate({**dict(record.get("experiment") or {}), "folder": base.absolute()})
        series = tuple(RecordedSeries.model_validate(each) for each in record["series"])
        tasks = {section.label: record["tasks"][section.label] for section in experiment.tasks}
        counts = {name: int(record["datasets"][name]["images"]) for name in experiment.datasets}
    except ValidationError as error:
        raise UserError(first_error(error, where)) from None
    except (KeyError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{where}: it does not describe a run ({cause}): run the experiment again") from None
    images: dict[str, dict[str, str | None]] = {name: {} for name in experiment.datasets}
    try:
        table = read_table(folder, IMAGES, ["dataset", "id", "source"])
    except FileNotFoundError:
        raise UserError(f"{address} has no {IMAGES}, which says what images it is about: run the experiment again") from None
    for dataset, image_id, source in zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True):
        images.setdefault(dataset, {})[image_id] = source or None
    return RecordedRun(address, folder, store_of_run(folder, record), experiment, series, tasks, images, counts, record)


def text_of_fingerprint(parsed: Any, stored: Iterable[str]) -> str:
    """The fingerprint of a task as text.

    Args:
        parsed: the fingerprint as environment.json holds it: parsed, and without credentials.
        stored: fingerprints of tasks in the stores of the runs, among them that of the task if it has predictions.
    """
    for text in stored:
        if redact_values(parse_fingerprint(text)) == parsed:
            return text
    return parsed if isinstance(parsed, str) else json.dumps(parsed, sort_keys=True, separators=(",", ":"))


def stored_tasks(store: Folder) -> list[str]:
    """Fingerprints of the tasks of which a store has predictions."""
    return [facts.fingerprint for facts in describe_all(take_inventory(store)) if facts.kind == "predictions"]
