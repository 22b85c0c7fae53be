"""Writes an anchor pack: the streams that a store holds of one codec of a run."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.sections import first_error
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import parse_object
from icmbench.harness.store.pack import MANIFEST, Manifest, PackedPoint
from icmbench.harness.store.parquet_files import read_table
from icmbench.harness.store.references import store_of_run
from icmbench.harness.store.store import Store
from icmbench.harness.store.whole_files import whole_file, writing

IMAGES = "images.parquet"  # In a run folder: every image with its dataset and the hash of its source pixels.
ROWS_AT_ONCE = 256


class RecordedSeries(BaseModel):
    """One entry of `series` in environment.json; see `icmbench.harness.derive.environment`."""

    model_config = ConfigDict(strict=True)

    label: str
    codec: str
    point: str
    given: Any
    seed: int | None
    fingerprint: str
    deterministic: bool
    measured_elsewhere: bool
    estimated: bool = False  # Runs of before codecs could estimate their rates do not record it.


class RecordedHardware(BaseModel):
    """The facts of environment.json's `hardware` that a pack repeats."""

    machine: str


class RunRecord(BaseModel):
    """What `export` reads of environment.json. Other keys are ignored."""

    series: list[RecordedSeries]
    datasets: dict[str, Any]
    python: str
    store: str | None = None
    hardware: RecordedHardware


def export(run: str, label: str, out: Path) -> Manifest:
    """Write the streams of one codec of a run as a pack.

    Args:
        run: the run folder or its URL.
        label: the codec's label in the experiment.
        out: the file to write.

    Returns:
        The manifest of the pack.

    Raises:
        UserError: the folder holds no finished run, the run has no such codec or no streams of it, the streams' sizes were measured
            elsewhere (codec `folder`) or estimated by the codec, or the pack cannot be written.
    """
    folder = Folder(run)
    try:
        environment = RunRecord.model_validate(parse_object(folder.full_path("environment.json"), folder.read("environment.json")))
        images = read_table(folder, IMAGES, ["id", "source"]).to_pydict()
    except ValidationError as error:
        raise UserError(first_error(error, folder.full_path("environment.json"))) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: not the folder of a finished run ({error}); give the --out of `icmbench run`") from None
    store = Store(store_of_run(folder, {"store": environment.store}).root)
    id_of = {source: image_id for source, image_id in zip(images["source"], images["id"], strict=True) if source is not None}
    series = [facts.model_dump() for facts in environment.series if facts.label == label]
    if not series:
        raise UserError(f"{run} has no codec {label!r}; it has {', '.join(sorted({facts.label for facts in environment.series}))}")
    if any(facts["measured_elsewhere"] for facts in series):
        raise UserError(f"{label!r} has no streams of its own, only sizes that were measured elsewhere: nothing to pack")
    if any(facts["estimated"] for facts in series):
        raise UserError(f"{label!r} estimates its rate and writes no streams: nothing to pack")
    made = {"icmbench": version("icmbench"), "python": environment.python, "machine": environment.hardware.machine}
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with writing(out), whole_file(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        points = [_pack_point(archive, run, facts, _read_streams(store, id_of, facts)) for facts in series]
        manifest = Manifest(format="icmbench-pack-1", codec=series[0]["codec"], made=made, points=points)
        text = manifest.model_dump_json().encode()
        archive.writestr(zipfile.ZipInfo(MANIFEST), text)
        archive.comment = hashlib.sha256(text).hexdigest().encode()
    return manifest


def _pack_point(
    archive: zipfile.ZipFile, run: str, facts: dict[str, Any], streams: Iterator[tuple[str, dict[str, Any]]]
) -> PackedPoint:
    """Write the streams of one point and return its entry in the manifest. Of images with equal pixels the first one is packed."""
    rows: dict[str, dict[str, Any]] = {}
    for source, row in streams:
        if source in rows:
            continue
        stream = hashlib.sha256(row["data"]).hexdigest()
        if stream not in archive.NameToInfo:
            archive.writestr(zipfile.ZipInfo(stream), row["data"])
        hashes = {"source": source, "stream": stream, "pixels": row["sha256"]}
        rows[source] = {"id": row["id"], **hashes, "bytes": len(row["data"]), "encode_seconds": row["encode_seconds"]}
    name = f"{run}: {facts['label']} {facts['point']}"
    if not rows:
        raise UserError(f"{name}: no streams; run the experiment first")
    codec_facts = {key: facts[key] for key in ("given", "seed", "fingerprint", "deterministic")}
    try:
        return PackedPoint.model_validate({"label": facts["point"], "streams": list(rows.values()), **codec_facts})
    except ValidationError as error:
        raise UserError(first_error(error, name)) from None


def _read_streams(store: Store, id_of: Mapping[str, str], facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Hash of the source pixels and row of every stream of a series.

    Args:
        store: the store of the run.
        id_of: image ids of the run by the hash of the source pixels.
        facts: what environment.json says about the series.
    """
    fingerprint = json.dumps([facts["fingerprint"], facts["seed"]])
    collection = store.streams(fingerprint)
    collection.refresh()
    claims = store.claims(fingerprint)
    claims.refresh()
    columns = ["key", "source", "data", "encode_seconds", "sha256"]
    for start in range(0, len(collection), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(collection)))
        for number, row in zip(rows, collection.read(rows, columns).to_pylist(), strict=True):
            in_force = claims.generations(row["key"])
            is_chosen = number == collection.find([row["key"]])[0] if facts["deterministic"] else row["sha256"] == in_force.get(0)
            if row["source"] in id_of and is_chosen:
                yield row["source"], {**row, "id": id_of[row["source"]]}
