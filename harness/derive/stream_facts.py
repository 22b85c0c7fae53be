"""What codecs took from files by an image's id when runs made their streams, which decides the keys of these streams."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from icmbench.harness.config.errors import UserError
from icmbench.harness.derive.bound import Derived
from icmbench.harness.derive.merging import MergePlan
from icmbench.harness.derive.recorded import RecordedRun
from icmbench.harness.derive.stand_ins import MergedSeries, RecordedCodec
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.parquet_files import read_table
from icmbench.harness.store.shards import SHARD_NAME

STREAMS = "streams.parquet"


def find_facts(plan: MergePlan, collection: Collection, series: MergedSeries) -> dict[str, str] | None:
    """For each image the digest under which its stream is stored, as far as that can be told; None if there are no facts.

    The first run that reported a stream of the image tells which of those with its source pixels it is; otherwise the codec
    itself does, if it is here.

    Args:
        plan: what is merged.
        collection: the streams of the series.
        series: the codec at one point and seed.
    """
    if not _have_facts(collection):
        return None
    size = "bits" if series.estimated else "bytes"
    stored = _stored_streams(collection, size)
    found: dict[str, str] = {}
    for name, images in plan.images.items():
        for run in plan.runs:
            hashes = run.hashes(name)
            for image_id, reported in _reported_streams(run, name, series, size):
                source = images.sha256.get(image_id)
                if source is not None and hashes.get(image_id) == source and image_id not in found:
                    matching = [facts for facts, *stream in stored.get(source, []) if tuple(stream) == reported]
                    found |= {image_id: matching[0]} if matching else {}
        if not isinstance(series.codec, RecordedCodec):
            found |= {image_id: series.facts_here(image_id) for image_id in images.ids if image_id not in found}
    return found


def _stored_streams(collection: Collection, size: str) -> dict[str, list[tuple[str, str, float]]]:
    """Facts, hash of the reconstruction and size of the streams of each source image, by the hash of its pixels.

    Args:
        collection: the streams.
        size: the column of the size: "bytes", or "bits" where the codec estimates its rate.
    """
    collection.refresh()
    table = collection.read(collection.all_rows(), ["source", "facts", "sha256", size])
    stored: dict[str, list[tuple[str, str, float]]] = {}
    for source, facts, sha256, number in zip(*(column.to_pylist() for column in table.columns), strict=True):
        stored.setdefault(source, []).append((facts, sha256, number))
    return stored


def _have_facts(collection: Collection) -> bool:
    """Whether the facts of any stored stream are more than empty; only the footers of shards are read."""
    folder = collection.folder
    for name in folder.names(collection.place):
        if not SHARD_NAME.fullmatch(name.rpartition("/")[2]):
            continue
        try:
            with folder.fs.open(folder.full_path(name), "rb") as file:
                footer = pq.read_metadata(file)
            column = footer.schema.to_arrow_schema().get_field_index("facts")
            groups = [footer.row_group(k).column(column).statistics for k in range(footer.num_row_groups)]
        except FileNotFoundError:  # Another process has replaced it by a larger shard.
            continue
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{folder.full_path(name)} cannot be read ({' '.join(str(error).split())}): delete it") from error
        if any(group is None or group.max != "" for group in groups):
            return True
    return False


def _reported_streams(run: RecordedRun, dataset: str, series: MergedSeries, size: str) -> Iterator[tuple[str, tuple[str, float]]]:
    """Image, hash of its pixels and size of every stream of a series that the tables of a run are made from."""
    try:
        Derived(run.folder).check(STREAMS)
        table = read_table(run.folder, STREAMS, ["codec", "point", "dataset", "id", "sha256", size])
    except (UserError, FileNotFoundError):  # It has no finished tables.
        return
    for column, value in (("codec", series.label), ("point", series.point_name), ("dataset", dataset)):
        table = table.filter(pc.equal(table.column(column), value))
    columns = (table.column(name).to_pylist() for name in ("id", "sha256", size))
    for image_id, sha256, number in zip(*columns, strict=True):
        yield image_id, (sha256, number)
