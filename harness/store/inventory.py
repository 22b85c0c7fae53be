"""What a store holds: its files, listed once and sorted by what their names say, and facts about each collection.

Only names that icmbench itself gives are taken for files of the store. Links are never followed, since they may lead out of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder, explain_connection_errors
from icmbench.harness.store.formats import FORMAT, FormatError, check_metadata
from icmbench.harness.store.keys import digest
from icmbench.harness.store.references import ENVIRONMENT, exists, store_of_run

PARTS = ("streams", "predictions", "claims", "contexts", "reconstructions", "leases", "references", "cleaning")
_NAMES = {
    "shard": r"(?P<kind>streams|predictions)/(?P<digest>[0-9a-f]{20})/\d{6,}-[0-9a-f]{32}\.parquet",
    "index": r"(?P<kind>streams|predictions)/(?P<digest>[0-9a-f]{20})/index-[0-9a-f]{32}\.parquet",
    "claim": r"(?P<kind>claims)/(?P<digest>[0-9a-f]{20})/[0-9a-f]{32}\.\d{1,6}",
    "context": r"(?P<kind>contexts)/(?P<digest>[0-9a-f]{20})\.npz",
    "picture": r"(?P<kind>reconstructions)/(?P<prefix>[0-9a-f]{2})/(?P<digest>(?P=prefix)[0-9a-f]{62})\.png",
    "lease": r"(?P<kind>leases|cleaning)/(?P<digest>[A-Za-z0-9_.-]{1,200})\.json",
    "reference": r"(?P<kind>references)/(?P<digest>[0-9a-f]{20})\.json",
    "leftover": r"(?P<kind>[a-z]+)/(?P<digest>.+)(\.tmp-[^/]+-\d+-\d+|\.lock)",
}
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _NAMES.items()}
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")  # What file systems call the time of a file.
DEPTH = 3  # How many folders deep the files of a store lie.
PARALLEL = 8  # Requests at once; an object store takes longer to answer than to send.
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class StoredFile:
    """A file of the store.

    Attributes:
        name: its path below the store.
        digest: of the fingerprint that it belongs to, or of the picture's pixels; "" where the name holds none.
        bytes: its size.
        modified: when it was written, in seconds since 1970; None if the file system does not tell.
    """

    name: str
    digest: str
    bytes: int
    modified: float | None


@dataclass
class CollectionFiles:
    """The files of the rows of one kind and fingerprint."""

    kind: str
    digest: str
    shards: list[StoredFile] = field(default_factory=list)
    indices: list[StoredFile] = field(default_factory=list)

    @property
    def files(self) -> list[StoredFile]:
        """Shards and indices."""
        return [*self.shards, *self.indices]


@dataclass
class Inventory:
    """The files of a store.

    Attributes:
        folder: the store.
        collections: by kind ("streams" or "predictions") and digest of the fingerprint.
        claims: by digest of the codec's fingerprint.
        contexts, pictures, leases, references: files of these kinds.
        leftovers: half-written files, and locks.
        unknown: names of files that icmbench did not give.
        links: names of links and special files, which are passed over.
    """

    folder: Folder
    collections: dict[tuple[str, str], CollectionFiles] = field(default_factory=dict)
    claims: dict[str, list[StoredFile]] = field(default_factory=dict)
    contexts: list[StoredFile] = field(default_factory=list)
    pictures: list[StoredFile] = field(default_factory=list)
    leases: list[StoredFile] = field(default_factory=list)
    references: list[StoredFile] = field(default_factory=list)
    leftovers: list[StoredFile] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def add(self, name: str, size: int, modified: float | None) -> None:
        """Sort in one file by its name."""
        matches = ((what, pattern.fullmatch(name)) for what, pattern in _PATTERNS.items())
        what, match = next(((what, match) for what, match in matches if match), ("", None))
        if match is None:
            self.unknown.append(name)
            return
        file = StoredFile(name, match["digest"], size, modified)
        if what in ("shard", "index"):
            key = (match["kind"], file.digest)
            files = self.collections.setdefault(key, CollectionFiles(*key))
            (files.shards if what == "shard" else files.indices).append(file)
        elif what == "claim":
            self.claims.setdefault(file.digest, []).append(file)
        else:
            places = {"context": self.contexts, "picture": self.pictures, "lease": self.leases, "reference": self.references}
            places.get(what, self.leftovers).append(file)


def take_inventory(folder: Folder) -> Inventory:
    """List a store.

    Raises:
        UserError: it cannot be read.
    """
    inventory = Inventory(folder)
    if isinstance(folder.fs, LocalFileSystem):
        for part in PARTS:
            _list_local(Path(folder.path), part, inventory, DEPTH)
        return inventory
    for listing in in_parallel(lambda part: _list_remote(folder, part), PARTS):
        for path, entry in sorted(listing.items()):
            inventory.add(path.removeprefix(f"{folder.path}/"), int(entry.get("size") or 0), _time_of(entry))
    return inventory


def _list_local(root: Path, name: str, inventory: Inventory, depth: int) -> None:
    """Add all files of a folder; links are noted and not followed."""
    path = root / name
    if path.is_symlink() or not path.is_dir():
        if os.path.lexists(path):
            inventory.links.append(name)
        return
    try:
        with os.scandir(path) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            below = f"{name}/{entry.name}"
            if entry.is_dir(follow_symlinks=False) and depth > 1:
                _list_local(root, below, inventory, depth - 1)
            elif entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                inventory.add(below, stat.st_size, stat.st_mtime)
            elif entry.is_symlink() or not entry.is_dir():
                inventory.links.append(below)
    except FileNotFoundError:  # Another process has removed it since.
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _list_remote(folder: Folder, part: str) -> Mapping[str, Any]:
    try:
        with explain_connection_errors(folder):
            folder.fs.invalidate_cache()
            found: Mapping[str, Any] = folder.fs.find(folder.full_path(part), detail=True)
    except FileNotFoundError:
        return {}
    return found


def _time_of(entry: Mapping[str, Any]) -> float | None:
    for key in _TIMES:
        value = entry.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return None


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of a function that mostly waits for files, in the order of the items."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(function, items))


# Finding the store.


def open_store(address: str) -> tuple[Folder, Folder | None]:
    """The store at an address, and the run folder if the address is that of a run.

    Args:
        address: path or URL of a run folder or of a store.

    Raises:
        UserError: there is neither, or another version of icmbench wrote it.
    """
    folder = Folder(address)
    if not exists(folder):
        raise UserError(f"{address}: there is no such folder; name a run folder or a store")
    try:
        record = folder.read_json(ENVIRONMENT)
        store = store_of_run(folder, record) if record or folder.exists(ENVIRONMENT) else folder
        if not exists(store):
            raise UserError(f"{address}: its store {store.root} does not exist; name the store itself if it was moved")
        _refuse_other_formats(store)
    except FormatError as error:
        raise UserError(
            f"{address} is of another format than the store of this icmbench, which has format {FORMAT} "
            f"({str(error).partition(':')[0]}): use the icmbench that wrote it"
        ) from error
    if not any(store.exists(part) for part in PARTS):
        raise UserError(f"{store.root} is no store and no run folder: it has none of {', '.join(PARTS[:5])}")
    return store, None if store is folder else folder


def _refuse_other_formats(store: Folder) -> None:
    """Refuse a folder of the first format, which named the folders of its shards by labels.

    Raises:
        FormatError: a shard says that it is of another format.
    """
    for name in store.names("streams")[:100]:
        path = None if re.fullmatch("streams/[0-9a-f]{20}", name) else _first_shard(store, name, DEPTH)
        if path is None:
            continue
        try:
            metadata = _read_footer(store, path).schema.to_arrow_schema().metadata
        except OSError:
            continue
        check_metadata(store.full_path(path), metadata)


def _first_shard(store: Folder, name: str, depth: int) -> str | None:
    """The name of a Parquet file in a folder or the folders below it."""
    if name.endswith(".parquet") and store.fs.isfile(store.full_path(name)):
        return name
    if depth == 0 or not store.fs.isdir(store.full_path(name)):
        return None
    return next((path for below in store.names(name)[:3] if (path := _first_shard(store, below, depth - 1))), None)


# Facts about collections.


@dataclass(frozen=True)
class CollectionFacts:
    """What the metadata of a collection say.

    Attributes:
        kind: "streams" or "predictions".
        digest: of the fingerprint.
        about: name and point of the codec, or name of the task.
        fingerprint: "" if no file could be read.
        rows: by the names of the shards.
        files: number of shards and indices.
        bytes: their size.
        latest: when the latest row was written, in seconds since 1970; None if no file could be read.
    """

    kind: str
    digest: str
    about: Mapping[str, Any]
    fingerprint: str
    rows: int
    files: int
    bytes: int
    latest: float | None

    @property
    def estimated(self) -> bool:
        """Whether a codec estimated its rates, so that the collection holds no streams."""
        return self.kind == "streams" and self.about.get("estimated") is True

    @property
    def name(self) -> str:
        """Codec or task; "?" if no file could be read."""
        return str(self.about.get("codec" if self.kind == "streams" else "task", "?"))

    @property
    def point(self) -> str:
        """Rate point and seed; "" for predictions."""
        seed = self.about.get("seed")
        return str(self.about.get("point", "")) + ("" if seed is None else f" seed={seed}")


def describe_all(inventory: Inventory) -> list[CollectionFacts]:
    """Facts about every collection, sorted by kind, codec or task, and point."""
    described = in_parallel(lambda files: describe(inventory.folder, files), inventory.collections.values())
    return sorted(described, key=lambda facts: (facts.kind != "streams", facts.name, _natural(facts.point), facts.digest))


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Sorts numbers in a text by value."""
    return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in re.split(r"(\d+)", text)]


def describe(folder: Folder, files: CollectionFiles) -> CollectionFacts:
    """Facts from the footers of an index and of those shards that it does not cover; rows are not read."""
    metadata: Mapping[bytes, bytes] = {}
    latest: list[float] = []
    covered: set[str] = set()
    for file in files.files[::-1]:  # Indices first.
        if file.name in covered:
            continue
        try:
            footer = _read_footer(folder, file.name)
            own = footer.schema.to_arrow_schema().metadata or {}
            latest += [footer.row_group(k).column(1).statistics.max for k in range(footer.num_row_groups)]
            if file in files.indices:
                place = f"{files.kind}/{files.digest}"
                covered |= {f"{place}/{shard}" for shard in json.loads(own[b"shards"])}
        except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError):
            continue  # Damaged, which `verify` says, or replaced by larger shards since it was listed.
        metadata = metadata or own
    about = _about(metadata)
    rows = sum(int(file.name.rpartition("/")[2].partition("-")[0]) for file in files.shards)
    fingerprint = metadata.get(b"fingerprint", b"").decode("utf-8", "replace")
    size = sum(file.bytes for file in files.files)
    times = [value for value in latest if isinstance(value, float)]
    return CollectionFacts(files.kind, files.digest, about, fingerprint, rows, len(files.files), size, max(times, default=None))


def _about(metadata: Mapping[bytes, bytes]) -> Mapping[str, Any]:
    try:
        about = json.loads(metadata.get(b"about", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _read_footer(folder: Folder, name: str) -> pq.FileMetaData:
    with explain_connection_errors(folder), folder.fs.open(folder.full_path(name), "rb") as file:
        try:
            return pq.read_metadata(file)
        except pa.ArrowException as error:  # An OSError, so that it does not look like one of the connection.
            raise OSError(f"{name} has no footer") from error


def labels_of(run: Folder | None, facts: Sequence[CollectionFacts]) -> dict[str, set[str]]:
    """Labels of the codecs and tasks that a run's environment.json names, by the digest of their fingerprint.

    Args:
        run: the run folder; None for none.
        facts: the collections of its store. Only those of tasks are looked for, since the file holds their fingerprints parsed.
    """
    record = {} if run is None else run.read_json(ENVIRONMENT)
    series, tasks = record.get("series"), record.get("tasks")
    labels: dict[str, set[str]] = {}
    for each in series if isinstance(series, list) else []:
        if isinstance(each, dict):
            labels.setdefault(digest(json.dumps([each.get("fingerprint"), each.get("seed")])), set()).add(str(each.get("label")))
    for label, parsed in (tasks if isinstance(tasks, dict) else {}).items():
        for collection in facts:
            if collection.kind == "predictions" and parse_fingerprint(collection.fingerprint) == parsed:
                labels.setdefault(collection.digest, set()).add(str(label))
    return labels


def parse_fingerprint(fingerprint: str) -> Any:
    """A fingerprint as environment.json holds it: its facts if it is JSON, otherwise the text itself."""
    try:
        return json.loads(fingerprint)
    except ValueError:
        return fingerprint
