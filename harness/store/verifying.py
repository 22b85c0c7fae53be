"""Checks every file of a store: its bytes are those that were written, it lies where it belongs, and its rows and keys agree.

shard      its name's hash, its metadata, the key of each row from what decides it, the hash of each stream or its estimated bits
index      its name's hash, and its rows against those of the shards
claim      what its name says, and that a stream with the claimed pixels is there
context, reference      the digest that they hold of themselves
picture    the hash of its pixels, and the checksums of the PNG file
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.claims import claimed_pixels
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import ESTIMATED_FORMAT, KEY, FormatError, check_metadata
from icmbench.harness.store.inventory import CollectionFiles, Inventory, StoredFile, in_parallel, take_inventory
from icmbench.harness.store.keys import digest, row_key
from icmbench.harness.store.leases import leases
from icmbench.harness.store.references import LEASES, parse_reference
from icmbench.harness.store.shards import INDEX_NAME, KEY_COLUMNS, SHARD_NAME, content_name
from icmbench.harness.store.store import (
    ESTIMATE,
    ESTIMATE_FACTS,
    PREDICTION,
    PREDICTION_FACTS,
    STREAM,
    STREAM_FACTS,
    Store,
    parse_context,
)

COMPUTED_AGAIN = "delete it, as `icmbench store verify --repair` does, and run the experiments again that need it"
RUN_AGAIN = "run the experiment again that left it, which writes it anew; it is never deleted, since `clean` would then miss it"
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError, pa.ArrowException)
_PNG = b"\x89PNG\r\n\x1a\n"


class Damaged(Exception):
    """A file is not what was written; the text says in which respect."""


@dataclass(frozen=True)
class Damage:
    """A damaged file.

    Attributes:
        file: the file.
        cause: what is wrong with it.
        remedy: what to do about it.
        repairable: whether it may be deleted, because it is computed again.
    """

    file: StoredFile
    cause: str
    remedy: str
    repairable: bool


def verify(folder: Folder) -> Iterator[Damage]:
    """Read and check every file of a store.

    Files that another process removes meanwhile, because it replaces small shards by large ones, are passed over.

    Args:
        folder: the store.

    Yields:
        Damaged files, as they are found.

    Raises:
        UserError: the store cannot be read.
    """
    inventory = take_inventory(folder)
    for key in sorted(inventory.collections.keys() | {("streams", each) for each in inventory.claims}):
        files = inventory.collections.get(key) or CollectionFiles(*key)
        yield from _verify_collection(folder, files, inventory.claims.get(key[1], []) if key[0] == "streams" else [])
    store = Store(folder.root)
    yield from _check_all(folder, inventory.contexts, _check_context)
    yield from _check_all(folder, inventory.pictures, lambda _, file: _check_picture(store, file))
    for damage in _check_all(folder, inventory.references, _check_reference):
        yield replace(damage, remedy=RUN_AGAIN, repairable=False)
    for file in _unreadable_leases(inventory):
        yield Damage(file, "it is no readable lease", "delete it once no run and no `icmbench store clean` is at work", False)


def repair(folder: Folder, damages: Sequence[Damage]) -> tuple[list[Damage], list[Damage]]:
    """Delete damaged files that are computed again, but for those that a run at work holds.

    Args:
        folder: the store.
        damages: what `verify` found.

    Returns:
        What was deleted, and what was left.
    """
    held = {each for lease in leases(folder, LEASES) if lease.live for each in lease.facts.get("fingerprints") or []}
    removable = [damage for damage in damages if damage.repairable and damage.file.digest not in held]
    for damage in removable:
        folder.remove(damage.file.name)
    left = [damage for damage in damages if damage not in removable]
    # Claims on streams that are gone would stand in the way of new ones.
    places = {damage.file.digest for damage in removable if damage.file.name.startswith("streams/")}
    inventory = take_inventory(folder) if places else Inventory(folder)
    for place in sorted(places & inventory.claims.keys()):
        files = inventory.collections.get(("streams", place), CollectionFiles("streams", place))
        for damage in _verify_collection(folder, files, inventory.claims[place]):
            if damage.file.name.startswith("claims/"):
                folder.remove(damage.file.name)
                removable.append(damage)
    return removable, left


def read_shard(folder: Folder, name: str) -> tuple[bytes, pa.Table]:
    """Bytes and rows of a shard or index after its name and metadata were checked.

    Args:
        folder: the store.
        name: the file: kind, digest of the fingerprint, and name of the shard.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: its bytes, its place or its metadata are wrong.
        FormatError: another version of icmbench wrote it.
    """
    kind, place, own = name.split("/")
    match = SHARD_NAME.fullmatch(own) or INDEX_NAME.fullmatch(own)
    data = folder.read(name)
    if match is None or content_name(data) != match["sha256"]:
        raise Damaged("its bytes are not those of its name")
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
        metadata = table.schema.metadata or {}
        check_metadata(folder.full_path(name), metadata)
        if metadata.get(b"kind") != kind.encode() or digest(metadata[b"fingerprint"].decode()) != place:
            raise Damaged("it belongs to another codec or task")
        if SHARD_NAME.fullmatch(own) and table.num_rows != int(match["rows"]):
            raise Damaged(f"it has {table.num_rows} rows and not those of its name")
    except (*_DAMAGE, OSError) as error:
        raise Damaged(f"it cannot be read: {' '.join(str(error).split())}") from error
    return data, table


# Collections and their claims.


def _verify_collection(folder: Folder, files: CollectionFiles, claims: Sequence[StoredFile]) -> Iterator[Damage]:
    """Check shards, then the indices and claims against them."""
    facts: dict[str, pa.Table] = {}

    def check(folder: Folder, file: StoredFile) -> None:
        facts[file.name.rpartition("/")[2]] = _check_shard(folder, file)

    yield from _check_all(folder, files.shards, check)
    yield from _check_all(folder, files.indices, lambda folder, file: _check_index(folder, file, facts))
    if not claims:
        return
    # A claim is made after its row, and was listed together with it. Without all shards it cannot be told which rows there are.
    known = _realisations(facts.values()) if len(facts) == len(files.shards) else None
    yield from _check_all(folder, claims, lambda folder, file: _check_claim(folder, file, known))


def _check_shard(folder: Folder, file: StoredFile) -> pa.Table:
    """The columns of a shard that indices and claims repeat, after all of it was checked."""
    _, table = read_shard(folder, file.name)
    is_stream = file.name.startswith("streams/")
    is_estimate = is_stream and (table.schema.metadata or {}).get(KEY.encode()) == b"%d" % ESTIMATED_FORMAT
    expected = pa.schema([*KEY_COLUMNS, *(ESTIMATE if is_estimate else STREAM if is_stream else PREDICTION)])
    first = table.schema.names[: len(expected)]
    if first != expected.names or (is_stream and len(table.schema) != len(expected)):
        raise Damaged("it has other columns than expected")
    if [table.schema.field(name).type for name in first] != expected.types:
        raise Damaged("its columns are of other types than expected")
    decisive = ("source", "facts") if is_stream else ("pixels", "original", "facts")
    for key, *facts in zip(*(table.column(name).to_pylist() for name in ("key", *decisive)), strict=True):
        if row_key(*facts) != key:
            raise Damaged("the key of a row is not that of what decides the row")
    if is_estimate:
        bits = table.column("bits").to_numpy()
        if not (np.isfinite(bits) & (bits > 0)).all():
            raise Damaged("the bits of a row are not a finite number above 0")
    elif is_stream:
        for recorded, data in zip(table.column("stream"), table.column("data"), strict=True):
            if data.as_py() is None or hashlib.sha256(data.as_buffer()).hexdigest() != recorded.as_py():
                raise Damaged("a stream is not the one of its recorded hash")
    # Indices of earlier versions repeat the machine of a prediction too.
    repeated = ESTIMATE_FACTS if is_estimate else STREAM_FACTS if is_stream else [*PREDICTION_FACTS, "machine"]
    return table.select(["key", "written", *repeated]).replace_schema_metadata(None)


def _check_index(folder: Folder, file: StoredFile, facts: Mapping[str, pa.Table]) -> None:
    """Compare an index with the shards that it covers. One that covers shards which are gone is not used by anyone."""
    _, table = read_shard(folder, file.name)
    try:
        covered = json.loads((table.schema.metadata or {})[b"shards"])
        columns = table.schema.names[:-2]
        if table.schema.names[-2:] != ["shard", "row"] or columns[:2] != ["key", "written"]:
            raise Damaged("it has other columns than expected")
        for number, name in enumerate(covered):
            if name not in facts:
                continue
            rows = table.filter(pc.equal(table.column("shard"), number)).sort_by("row")
            shard = facts[name]
            if rows.column("row").to_pylist() != list(range(shard.num_rows)):
                raise Damaged(f"it lacks rows of {name}")
            if not _equal(rows.select(columns), shard.select(columns)):
                raise Damaged(f"its rows are not those of {name}")
        if not set(np.unique(table.column("shard").to_numpy())) <= {*range(len(covered))}:
            raise Damaged("it has rows of no shard")
    except _DAMAGE as error:
        raise Damaged(f"it cannot be read: {' '.join(str(error).split())}") from error


def _equal(first: pa.Table, second: pa.Table) -> bool:
    first, second = first.replace_schema_metadata(None), second.replace_schema_metadata(None)
    return first.equals(second) or repr(first.to_pylist()) == repr(second.to_pylist())  # The latter for numbers that are NaN.


def _realisations(tables: Iterable[pa.Table]) -> dict[bytes, set[str]]:
    """SHA-256 of all reconstructions of each stream."""
    pixels: dict[bytes, set[str]] = {}
    for table in tables:
        for key, sha256 in zip(table.column("key").to_pylist(), table.column("sha256").to_pylist(), strict=True):
            pixels.setdefault(key, set()).add(sha256)
    return pixels


def _check_claim(folder: Folder, file: StoredFile, known: Mapping[bytes, set[str]] | None) -> None:
    pixels = claimed_pixels(file.name, folder.read(file.name))
    key = bytes.fromhex(file.name.rpartition("/")[2].partition(".")[0])
    if known is not None and pixels not in known.get(key, set()):
        raise Damaged("no stored stream has the pixels that it claims")


# Other files.


def _check_all(folder: Folder, files: Sequence[StoredFile], check: Callable[[Folder, StoredFile], Any]) -> Iterator[Damage]:
    """Apply a check to files; one that another process has removed meanwhile is passed over."""

    def examine(file: StoredFile) -> Damage | None:
        try:
            check(folder, file)
        except FileNotFoundError:
            return None
        except FormatError as error:
            return Damage(file, str(error).partition(":")[0], "use the icmbench that wrote it", repairable=False)
        except UserError:  # The store cannot be reached.
            raise
        except Exception as error:  # numpy, Pillow and zipfile raise a dozen types on damaged files.
            cause = " ".join(str(error).split()) or type(error).__name__
            return Damage(file, cause, COMPUTED_AGAIN, repairable=True)
        return None

    for damage in in_parallel(examine, files):
        if damage is not None:
            yield damage


def _check_context(folder: Folder, file: StoredFile) -> None:
    fingerprint, _ = parse_context(folder.read(file.name))
    if digest(fingerprint) != file.digest:
        raise Damaged("it is that of another task or model")


def _check_picture(store: Store, file: StoredFile) -> None:
    _check_png(store.folder.read(file.name))
    if store.load_picture(file.digest) is None:
        raise Damaged("its pixels are not those of its name")


def _check_png(data: bytes) -> None:
    """Check the checksum of every chunk; decoders do not look at all of them."""
    position = len(_PNG)
    if not data.startswith(_PNG):
        raise Damaged("it is no PNG file")
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if struct.unpack_from(">I", data, end)[0] != zlib.crc32(data[position + 4 : end]):
            raise Damaged("the checksum of a part is wrong")
        position = end + 4
    if position != len(data):
        raise Damaged("something follows the end of the picture")


def _check_reference(folder: Folder, file: StoredFile) -> None:
    parse_reference(file.name, folder.read(file.name))


def _unreadable_leases(inventory: Inventory) -> list[StoredFile]:
    """Files of leases that `leases` cannot read, although they are still there."""
    places = sorted({file.name.partition("/")[0] for file in inventory.leases})
    readable: set[str] = {lease.name for place in places for lease in leases(inventory.folder, place)}
    return [file for file in inventory.leases if file.name not in readable and inventory.folder.exists(file.name)]
