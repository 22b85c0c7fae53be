"""Copies a store, or a part of it, into another one. What the destination holds stands: rows of keys that it has are left out."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.claims import claimed_pixels
from icmbench.harness.store.collection import Collection
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import ESTIMATED_FORMAT, FORMAT
from icmbench.harness.store.inventory import (
    CollectionFacts,
    Inventory,
    StoredFile,
    describe_all,
    in_parallel,
    labels_of,
    open_store,
    parse_fingerprint,
    take_inventory,
)
from icmbench.harness.store.leases import hold
from icmbench.harness.store.parquet_files import to_parquet
from icmbench.harness.store.references import ENVIRONMENT, LEASES, exists, is_same_place, refuse_while_cleaned
from icmbench.harness.store.shards import Kind, content_name
from icmbench.harness.store.store import ESTIMATE_FACTS, PREDICTION_FACTS, STREAM_FACTS, Store, parse_context
from icmbench.harness.store.tidying import store_index
from icmbench.harness.store.verifying import Damaged, read_shard


@dataclass(frozen=True)
class Selection:
    """Which part of a store is copied; everything if nothing is named.

    Attributes:
        codecs: labels of a run's codecs, or names of codecs: their streams.
        tasks: labels of a run's tasks, or names of tasks: their predictions, and their contexts.
        fingerprints: digests, or their beginnings, of streams or predictions.
    """

    codecs: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        """Whether nothing is named."""
        return not (self.codecs or self.tasks or self.fingerprints)


@dataclass
class Copied:
    """What was copied.

    Attributes:
        collections: how many collections took part.
        files, bytes, rows: shards that were written, their size and their rows.
        present: shards whose rows the destination had.
        claims, contexts, pictures: how many of them were written.
        damaged: files of the source that were left out, each with the reason.
    """

    collections: int = 0
    files: int = 0
    bytes: int = 0
    rows: int = 0
    present: int = 0
    claims: int = 0
    contexts: int = 0
    pictures: int = 0
    damaged: list[str] = field(default_factory=list)


def copy(source: str, destination: str, selection: Selection = Selection(), pictures: bool = False) -> Copied:
    """Copy a store or a part of it.

    Args:
        source: path or URL of a run folder or store.
        destination: the same; a store that does not exist is made.
        selection: what is copied.
        pictures: whether kept pictures of the copied streams are copied too.

    Raises:
        UserError: a name in the selection is that of nothing, a store cannot be read or written, or both are the same.
    """
    origin, run = open_store(source)
    target = _open_destination(destination)
    if is_same_place(origin, target):
        raise UserError(f"{destination} is the store that is copied: name another one")
    inventory = take_inventory(origin)
    chosen = _choose(selection, describe_all(inventory), run)
    with contextlib.ExitStack() as stack:
        facts = {"run": "", "experiment": f"icmbench store copy to {target.root}", "fingerprints": [each.digest for each in chosen]}
        stack.enter_context(hold(target, LEASES, facts))
        with contextlib.suppress(UserError):  # A store that can only be read can be copied.
            stack.enter_context(hold(origin, LEASES, facts))
        refuse_while_cleaned(target)
        copied = Copied(len(chosen))
        for each in chosen:
            _Transfer(origin, target, each, inventory, copied).copy(pictures)
        _copy_contexts(inventory, target, selection, {each.digest for each in chosen}, copied)
    return copied


def _open_destination(address: str) -> Folder:
    folder = Folder(address)
    if not exists(folder) or (not folder.names(".") and not folder.exists(ENVIRONMENT)):
        return folder
    store, _ = open_store(address)
    if links := take_inventory(store).links:
        raise UserError(f"{store.full_path(links[0])} is a link, which may lead out of the store: put a folder in its place")
    return store


def _choose(selection: Selection, facts: Sequence[CollectionFacts], run: Folder | None) -> list[CollectionFacts]:
    """The collections that a selection names. Those of which no file can be read are left out."""
    readable = [each for each in facts if each.fingerprint]
    if selection.is_all:
        return readable
    labels = labels_of(run, readable)
    chosen: dict[str, CollectionFacts] = {}
    for option, kind, names in (("--codec", "streams", selection.codecs), ("--task", "predictions", selection.tasks)):
        of_kind = [each for each in readable if each.kind == kind]
        for name in names:
            matching = [each for each in of_kind if name == each.name or name in labels.get(each.digest, ())]
            if not matching:
                known = {each.name for each in of_kind} | {label for each in of_kind for label in labels.get(each.digest, ())}
                raise UserError(f"{option} {name}: the store has none of that name; it has {', '.join(sorted(known)) or 'none'}")
            chosen |= {each.digest: each for each in matching}
    for beginning in selection.fingerprints:
        matching = [each for each in readable if each.digest.startswith(beginning)] if beginning else []
        if not matching:
            raise UserError(f"--fingerprint {beginning}: nothing in the store has it; `icmbench store ls` lists all")
        chosen |= {each.digest: each for each in matching}
    return [each for each in readable if each.digest in chosen]


class _Transfer:
    """Copies one collection with its claims.

    Args:
        origin: the store that is read.
        target: the store that is written.
        facts: the collection.
        inventory: the files of the store that is read.
        copied: receives what was copied.
    """

    def __init__(self, origin: Folder, target: Folder, facts: CollectionFacts, inventory: Inventory, copied: Copied) -> None:
        self._origin, self._target, self._facts, self._copied = origin, target, facts, copied
        self._files = inventory.collections[facts.kind, facts.digest]
        self._claims = inventory.claims.get(facts.digest, []) if facts.kind == "streams" else []
        self._kept = {file.digest: file for file in inventory.pictures}
        is_random = facts.about.get("deterministic") is False or bool(self._claims)
        # Rows of equal identity stand for each other, so that the destination's are kept.
        self._identity = ["key", "sha256"] if facts.kind == "streams" and is_random else ["key"]
        self._pixels: set[str] = set()

    def copy(self, pictures: bool) -> None:
        """Copy rows first, then the claims on them, and pictures if they are asked for."""
        collection: Collection | None = None
        present: set[tuple[object, ...]] = set()
        for name, data, table in self._shards():
            if collection is None:
                collection = self._destination(table)
                present = {*_identities(collection.facts(collection.all_rows(), self._identity), self._identity)}
            if "sha256" in table.schema.names and self._facts.kind == "streams":
                self._pixels.update(table.column("sha256").to_pylist())
            rows = [each not in present for each in _identities(table, self._identity)]
            if not any(rows):
                self._copied.present += 1
                continue
            if not all(rows):
                table = table.filter(pa.array(rows))
                data = to_parquet(table, {key.decode(): value.decode() for key, value in table.schema.metadata.items()})
                name = f"{self._facts.kind}/{self._facts.digest}/{table.num_rows:06d}-{content_name(data)}.parquet"
            self._target.write(name, data)
            self._copied.files += 1
            self._copied.bytes += len(data)
            self._copied.rows += table.num_rows
        if collection is not None:
            collection.refresh()
            store_index(collection)  # Made anew, so that the next run need not read all shards.
        self._copy_claims()
        if pictures:
            in_parallel(self._copy_picture, sorted(self._pixels & self._kept.keys()))

    def _shards(self) -> Iterator[tuple[str, bytes, pa.Table]]:
        """Name, bytes and rows of each shard; the folder is listed again if another process replaces shards meanwhile."""
        done: set[str] = set()
        waiting = [file.name for file in self._files.shards]
        for _ in range(4):
            is_stale = False
            for name in waiting:
                try:
                    data, table = read_shard(self._origin, name)
                except FileNotFoundError:
                    is_stale = True
                    continue
                except Damaged as error:
                    self._copied.damaged.append(f"{self._origin.full_path(name)}: {error}")
                    continue
                finally:
                    done.add(name)
                yield name, data, table
            if not is_stale:
                return
            files = take_inventory(self._origin).collections.get((self._facts.kind, self._facts.digest))
            waiting = [file.name for file in files.shards if file.name not in done] if files else []

    def _destination(self, table: pa.Table) -> Collection:
        columns = pa.schema(list(table.schema)[2:])
        facts, number = self._facts, ESTIMATED_FORMAT if self._facts.estimated else FORMAT
        indexed = ESTIMATE_FACTS if facts.estimated else STREAM_FACTS if facts.kind == "streams" else PREDICTION_FACTS
        kind: Kind = "streams" if facts.kind == "streams" else "predictions"
        collection = Collection(self._target, kind, facts.fingerprint, columns, indexed, facts.about, number)
        collection.refresh()
        return collection

    def _copy_claims(self) -> None:
        """Claims of the destination stand; those on other pixels are appended as further generations."""
        if not self._claims:
            return
        claims = Store(self._target.root).claims(self._facts.fingerprint)
        claims.refresh()
        by_key: dict[bytes, list[tuple[int, StoredFile]]] = {}
        for file in self._claims:
            key, _, generation = file.name.rpartition("/")[2].partition(".")
            by_key.setdefault(bytes.fromhex(key), []).append((int(generation), file))

        def claim_all(item: tuple[bytes, list[tuple[int, StoredFile]]]) -> int:
            key, files = item
            count = 0
            for _, file in sorted(files, key=lambda each: each[0]):
                try:
                    pixels = claimed_pixels(file.name, self._origin.read(file.name))
                except (OSError, ValueError):
                    self._copied.damaged.append(f"{self._origin.full_path(file.name)}: it is no readable claim")
                    continue
                while pixels in self._pixels and pixels not in claims.generations(key).values():
                    claims.claim(key, max(claims.generations(key), default=-1) + 1, pixels)
                    count += 1
            return count

        self._copied.claims += sum(in_parallel(claim_all, by_key.items()))

    def _copy_picture(self, sha256: str) -> None:
        file = self._kept[sha256]
        if Store(self._origin.root).load_picture(sha256) is None:
            self._copied.damaged.append(f"{self._origin.full_path(file.name)}: its pixels are not those of its name")
        elif self._target.write(file.name, self._origin.read(file.name), replace=False):
            self._copied.pictures += 1


def _identities(table: pa.Table, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of some columns, row by row. Those of indexed columns are the same as in the shards."""
    return zip(*(table.column(name).to_pylist() for name in columns), strict=True)


def _copy_contexts(inventory: Inventory, target: Folder, selection: Selection, chosen: Container[str], copied: Copied) -> None:
    """Copy contexts: all, or those of the chosen tasks, as far as their fingerprints tell of which task they are."""
    for file in inventory.contexts:
        try:
            data = inventory.folder.read(file.name)
            facts = parse_fingerprint(parse_context(data)[0])
        except FileNotFoundError:
            continue
        except Exception as error:  # numpy and zipfile raise a dozen types on damaged files.
            copied.damaged.append(f"{inventory.folder.full_path(file.name)}: {' '.join(str(error).split())}")
            continue
        is_named = isinstance(facts, dict) and facts.get("task") in selection.tasks
        if (selection.is_all or is_named or file.digest in chosen) and target.write(file.name, data, replace=False):
            copied.contexts += 1
