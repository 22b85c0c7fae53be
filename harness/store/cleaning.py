"""Removes from a store what no run needs.

needed     what a live lease names, what a run folder that is still there refers to, and everything younger than a day
asked for  what only expired leases and run folders that are gone refer to: removed once these are named
removed    all other collections with their claims, contexts, pictures of no stream, and half-written files
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection as Container
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.inventory import CollectionFacts, Inventory, StoredFile, describe_all, labels_of, take_inventory
from icmbench.harness.store.keys import digest
from icmbench.harness.store.leases import EXPIRY_SECONDS, Lease, hold, leases
from icmbench.harness.store.references import (
    CLEANING,
    ENVIRONMENT,
    LEASES,
    Reference,
    is_digest,
    is_same_place,
    parse_reference,
    run_address,
    run_identity,
    store_of_run,
    why_unused,
)
from icmbench.harness.store.store import Store
from icmbench.harness.store.whole_files import is_alive, process_space

YOUNG_SECONDS = 24 * 3600.0  # A run may be about to use what is younger, although it has not said so.
_TEMPORARY = re.compile(r".+\.tmp-(?P<host>.+)-(?P<pid>\d+)-\d+")


@dataclass
class Holder:
    """A run that is no longer seen to need the store, but may.

    Attributes:
        run: address of its run folder, by which it is named.
        owner: who ran it, and where.
        why: what became of it.
        since: when it was last heard of, in seconds since 1970.
        fingerprints: digests of the fingerprints that it refers to.
        files: its lease or reference.
        successor: address to which its run folder was moved and where it was run again, so that all that it needs is needed there.
        bytes: size of what only such holders keep from being removed.
    """

    run: str
    owner: str
    why: str
    since: float
    fingerprints: frozenset[str]
    files: list[str]
    successor: str = ""
    bytes: int = 0


@dataclass
class Cleaning:
    """What `clean` removes and why it spares the rest.

    Attributes:
        remove: reasons by file, in the order of removal.
        spared: why something that no run needs is kept.
        holders: expired leases, and references of runs that are gone and not known to be elsewhere, sorted by owner.
    """

    remove: dict[StoredFile, str] = field(default_factory=dict)
    spared: list[str] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of all that is removed."""
        return sum(file.bytes for file in self.remove)


@contextlib.contextmanager
def cleaning_lease(folder: Folder) -> Iterator[None]:
    """Tell runs that files are being removed, so that none begins meanwhile; see `refuse_while_cleaned`."""
    with hold(folder, CLEANING, {}):
        yield


def clean(folder: Folder, runs: Sequence[str] = (), apply: bool = False) -> Cleaning:
    """Find out what of a store no run needs, and remove it if asked to.

    Args:
        folder: the store.
        runs: addresses of runs whose lease has expired, or whose run folder is gone, and which are to be forgotten.
        apply: whether files are removed; otherwise nothing is changed.

    Returns:
        What was, or would be, removed.

    Raises:
        UserError: a run that is named is at work or still there or unknown, a lease or reference is damaged, or the store cannot be
            read or written.
    """
    if not apply:
        return _plan(folder, runs)
    with cleaning_lease(folder):
        plan = _plan(folder, runs)
        for file in plan.remove:
            folder.remove(file.name)
    return plan


def _plan(folder: Folder, runs: Sequence[str]) -> Cleaning:
    inventory = take_inventory(folder)
    facts = describe_all(inventory)
    needed, holders, superseded = _holders(folder, inventory, facts)
    named = _named(folder, runs, holders)
    holders = [holder for holder in holders if holder not in named]
    asked_for = frozenset[str]().union(*(holder.fingerprints for holder in holders))
    listed = [holder for holder in holders if not holder.successor]
    plan = Cleaning(holders=sorted(listed, key=lambda holder: (holder.owner, holder.run)))
    oldest = time.time() - YOUNG_SECONDS
    removed: set[str] = set()
    for each in facts:
        files = inventory.collections[each.kind, each.digest].files
        claims = inventory.claims.get(each.digest, []) if each.kind == "streams" else []
        if each.digest in needed:
            continue
        if each.digest in asked_for:
            for holder in holders:
                holder.bytes += each.bytes if each.digest in holder.fingerprints else 0
        elif any(_is_young(file, oldest) for file in [*files, *claims]):
            plan.spared.append(f"{each.kind} of {each.name} {each.point}".rstrip() + f" ({each.digest}): younger than a day")
        else:
            removed.add(f"{each.kind}/{each.digest}")
            # Claims go first: rows without claims are decoded again, while claims without rows would stand in the way of new ones.
            plan.remove |= dict.fromkeys([*claims, *files[::-1]], f"{each.kind} of {each.name} {each.point}".rstrip())
    _plan_others(inventory, needed | asked_for, oldest, removed, plan)
    names = {file.name: file for file in [*inventory.leases, *inventory.references]}
    plan.remove |= {
        names[name]: "leases of runs that were run again since, or of other commands that were killed"
        for name in superseded
        if name in names
    }
    plan.remove |= {names[name]: f"run {each.run}" for each in named for name in each.files if name in names}
    return plan


def _plan_others(inventory: Inventory, kept: Container[str], oldest: float, removed: Container[str], plan: Cleaning) -> None:
    """Add claims without streams, contexts, pictures of no stream, and half-written files."""
    for place, claims in inventory.claims.items():
        if ("streams", place) not in inventory.collections and place not in kept and not any(_is_young(f, oldest) for f in claims):
            plan.remove |= dict.fromkeys(claims, "claims on streams that are gone")
    contexts = [file for file in inventory.contexts if file.digest not in kept and not _is_young(file, oldest)]
    plan.remove |= dict.fromkeys(contexts, "contexts of tasks that no run has")
    pictures, why = _unused_pictures(inventory, removed)
    plan.remove |= dict.fromkeys((file for file in pictures if not _is_young(file, oldest)), "pictures of no stream")
    if why:
        plan.spared.append(f"{len(inventory.pictures)} pictures: {why}")
    for file in inventory.leftovers:
        match = _TEMPORARY.fullmatch(file.name)
        is_dead = match is not None and match["host"] == process_space() and not is_alive(int(match["pid"]))
        if not _is_young(file, oldest) or (is_dead and not _is_young(file, time.time() - EXPIRY_SECONDS)):
            plan.remove[file] = "half-written files"


def _is_young(file: StoredFile, oldest: float) -> bool:
    """Whether a file was written after a time, or does not tell when."""
    return file.modified is None or file.modified > oldest


def _unused_pictures(inventory: Inventory, removed: Container[str]) -> tuple[list[StoredFile], str]:
    """Kept pictures that are the reconstruction of no stream that stays; if that cannot be told, none, and why."""
    unused = {bytes.fromhex(file.digest): file for file in inventory.pictures}
    if unused and inventory.links:
        return [], f"{inventory.links[0]} is a link, so it cannot be told which streams are theirs"
    for each in describe_all(inventory) if unused else ():
        if each.kind != "streams" or f"streams/{each.digest}" in removed:
            continue
        collection = Store(inventory.folder.root).streams(each.fingerprint, estimated=each.estimated)
        try:
            if digest(each.fingerprint) != each.digest:
                raise UserError("no metadata can be read")
            collection.refresh()
        except UserError as error:
            return [], f"streams/{each.digest} cannot be read ({error}), so it cannot be told which are its"
        for sha256 in collection.facts(collection.all_rows(), ["sha256"]).column(0).to_pylist():
            unused.pop(bytes.fromhex(sha256), None)
    return [*unused.values()], ""


# Who needs what.


def lease_is_live(lease: Lease) -> bool:
    """Whether the holder of a lease may be at work. Containers that share a host's name do not see each other's processes."""
    return lease.live or time.time() - float(lease.facts["beat"]) < EXPIRY_SECONDS


def holders_of(folder: Folder, inventory: Inventory, facts: Sequence[CollectionFacts]) -> Mapping[str, list[str]]:
    """Who refers to each collection, for people: by digest of the fingerprint, `owner: run`.

    Args:
        folder: the store.
        inventory: its files.
        facts: what is known of its collections.
    """
    held: dict[str, list[str]] = {}
    for lease in leases(folder, LEASES):
        state = "at work" if lease_is_live(lease) else "expired lease"
        for each in _fingerprints(lease):
            held.setdefault(each, []).append(f"{lease.facts.get('owner')}: {lease.facts.get('run')} ({state})")
    inner = _inner_run(folder, facts)
    for file in inventory.references:
        with contextlib.suppress(ValueError, OSError):
            reference = parse_reference(file.name, folder.read(file.name))
            run = inner.address if inner.left(reference) else reference.run
            for each in reference.fingerprints:
                held.setdefault(each, []).append(f"{reference.owner}: {run}")
    for each in inner.fingerprints:
        held.setdefault(each, []).append(inner.address)
    return held


def _holders(
    folder: Folder, inventory: Inventory, facts: Sequence[CollectionFacts]
) -> tuple[frozenset[str], list[Holder], list[str]]:
    """Digests that are needed for certain, runs of which it cannot be seen whether they need something, and leases to forget."""
    inner = _inner_run(folder, facts)
    needed, references = inner.fingerprints, _read_references(folder, inventory)
    if inner.address and not any(inner.left(reference) for reference in references):
        needed |= {file.digest for file in inventory.contexts}  # environment.json does not name them.
    holders, superseded = [], [lease.name for lease in leases(folder, CLEANING) if not lease_is_live(lease)]
    for lease in _read_leases(folder, inventory):
        run, own = str(lease.facts.get("run") or ""), _fingerprints(lease)
        if lease_is_live(lease):
            needed |= own
        elif not run or any(_address(run) == each.run and own <= each.fingerprints for each in references):
            superseded.append(lease.name)
        else:
            who = f"{lease.facts.get('owner')} on {lease.facts.get('host')}"
            holders.append(Holder(run, who, "its lease has expired", float(lease.facts["beat"]), own, [lease.name]))
    why = {each.name: why_unused(each, folder) for each in references}
    latest = max((each for each in references if inner.left(each)), key=lambda each: each.time, default=None)
    if latest is not None:
        why[latest.name] = ""
    in_use = [each for each in references if not why[each.name]]
    for reference in references:
        if reference in in_use:
            needed |= reference.fingerprints
            continue
        who = f"{reference.owner} on {reference.host}" if reference.host else reference.owner
        successors = [each.run for each in in_use if reference.identity and each.identity == reference.identity
                      and reference.fingerprints <= each.fingerprints]  # fmt: skip
        holder = Holder(reference.run, who, why[reference.name], reference.time, reference.fingerprints, [reference.name])
        holder.successor = next(iter(successors), "")
        holders.append(holder)
    return needed, holders, superseded


def _read_leases(folder: Folder, inventory: Inventory) -> list[Lease]:
    """All leases. Raises UserError if one is damaged, because its holder might be at work."""
    readable = leases(folder, LEASES)
    listed = {file.name for file in inventory.leases if file.name.startswith(f"{LEASES}/")}
    for name in sorted(listed - {lease.name for lease in readable}):
        if folder.exists(name):
            path = folder.full_path(name)
            raise UserError(f"{path} is no readable lease, so it cannot be told who is at work: delete it if nobody is")
    return readable


def _read_references(folder: Folder, inventory: Inventory) -> list[Reference]:
    """All references. Raises UserError if one is damaged, because its run might need anything."""
    references = []
    for file in inventory.references:
        try:
            references.append(parse_reference(file.name, folder.read(file.name)))
        except FileNotFoundError:
            continue
        except ValueError as error:
            path = folder.full_path(file.name)
            raise UserError(
                f"{path} is damaged ({error}), so it cannot be told what its run needs: run that experiment again, or delete it"
            ) from error
    return references


def _fingerprints(lease: Lease) -> frozenset[str]:
    listed = lease.facts.get("fingerprints")
    return frozenset(each for each in listed if is_digest(each)) if isinstance(listed, list) else frozenset()


@dataclass(frozen=True)
class _InnerRun:
    """The run in whose folder a store lies.

    Attributes:
        address: its run folder; empty if there is none.
        identity: the identity of that.
        fingerprints: digests of the fingerprints that its environment.json names.
    """

    address: str = ""
    identity: str = ""
    fingerprints: frozenset[str] = frozenset()

    def left(self, reference: Reference) -> bool:
        """Whether a reference is that of this run, perhaps from where its folder lay before."""
        is_same = bool(self.identity) and reference.identity == self.identity
        return bool(self.address) and (is_same or reference.run == self.address)


def _inner_run(folder: Folder, facts: Sequence[CollectionFacts]) -> _InnerRun:
    """The run folder around a store, if it names that store."""
    parent = Folder(folder.root.rstrip("/").rpartition("/")[0] or folder.path.rpartition("/")[0] or "/")
    record = parent.read_json(ENVIRONMENT) if parent.exists(ENVIRONMENT) else {}
    if not record or not is_same_place(store_of_run(parent, record), folder):
        return _InnerRun()
    return _InnerRun(run_address(parent), run_identity(parent), frozenset(labels_of(parent, facts)))


def _address(text: str) -> str:
    return text.rstrip("/") if "://" in text else run_address(Folder(text))


def _named(folder: Folder, runs: Sequence[str], holders: Sequence[Holder]) -> list[Holder]:
    """The holders that the user names.

    Raises:
        UserError: a name is that of none.
    """
    named = []
    for run in runs:
        chosen = [holder for holder in holders if run == holder.run or _address(run) == _address(holder.run)]
        if not chosen:
            known = ", ".join(sorted({holder.run for holder in holders})) or "none"
            raise UserError(
                f"--run {run}: {folder.root} has no expired lease and no reference to a run folder that is gone of that address "
                f"(it has {known}); a run that is still there keeps what it needs: delete its folder first"
            )
        named += [holder for holder in chosen if holder not in named]
    return named
