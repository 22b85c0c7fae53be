"""Which runs need what a store holds, also after they have ended: a small file that each run leaves in its store.

    references/<digest of host and run folder>.json    the run folder's address, its owner, and the fingerprints that it refers to

A lease ends with its run, but tables can only be made anew from rows that are still there. A reference stays; it counts as long as
its run folder exists and names this store. A run folder has an identity of its own, by which it is recognised after it was moved.
The file holds a digest of itself, so that a damaged one is never taken for a short one.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.formats import FormatError
from icmbench.harness.store.guarded_json import guarded_bytes, parse_guarded
from icmbench.harness.store.keys import digest
from icmbench.harness.store.leases import leases, user_name

REFERENCES = "references"
LEASES = "leases"  # Leases of the processes that use a store.
CLEANING = "cleaning"  # Leases of `icmbench store clean` while it removes files.
ENVIRONMENT = "environment.json"
IDENTITY = "identity.json"  # In a run folder: what it is recognised by after it was moved.
INNER_STORE = "store"  # Name of the store in a run folder that names no other.
_REMOTE = ("s3", "s3a", "gs", "gcs", "abfs", "az")  # Protocols under which the run folder of a reference is looked for.


@dataclass(frozen=True)
class Reference:
    """One reference as it was read.

    Attributes:
        name: the file, below the store.
        run: address of the run folder.
        owner: who ran it.
        host: on which machine.
        time: when, in seconds since 1970.
        fingerprints: digests of the fingerprints of its codecs, tasks and contexts.
        identity: the identity of the run folder; empty if it was not recorded.
    """

    name: str
    run: str
    owner: str
    host: str
    time: float
    fingerprints: frozenset[str]
    identity: str = ""


def run_address(folder: Folder) -> str:
    """Address of a run folder that means the same from every working directory: its absolute path, or its URL."""
    return str(Path(folder.path).absolute()) if isinstance(folder.fs, LocalFileSystem) else folder.root.rstrip("/")


def run_identity(run: Folder) -> str:
    """The identity of a run folder, which goes with it wherever it is moved; empty if it has none that can be read."""
    try:
        return str(parse_guarded(IDENTITY, run.read(IDENTITY)).get("id", ""))
    except (OSError, ValueError):
        return ""


def leave_reference(store: Folder, run: Folder, fingerprints: Iterable[str], is_part: bool = False) -> None:
    """Note in a store that a run refers to what it holds. What the same run folder referred to before no longer counts.

    It is called once the run holds its lease and before it computes anything, so that a run that is killed is remembered too.

    Args:
        store: the store.
        run: the run folder.
        fingerprints: digests of the fingerprints of the run's codec points, tasks and contexts.
        is_part: whether only a part of the run's experiment is computed, so that what it referred to before still counts.

    Raises:
        WriteRefusedError: the store can only be read.
        UserError: the store cannot be written.
    """
    address, host = run_address(run), socket.gethostname() if isinstance(run.fs, LocalFileSystem) else ""
    name, needed = f"{REFERENCES}/{digest([host, address])}.json", {*fingerprints}
    if is_part and store.exists(name):
        try:
            needed |= parse_reference(name, store.read(name)).fingerprints
        except (FileNotFoundError, ValueError):
            return  # As long as this file is damaged, `icmbench store clean` removes nothing.
    run.write(IDENTITY, guarded_bytes({"id": uuid.uuid4().hex}), replace=False)
    facts = {"run": address, "owner": user_name(), "host": host, "identity": run_identity(run), "time": time.time()}
    store.write(name, guarded_bytes({**facts, "fingerprints": sorted(needed)}))


def parse_reference(name: str, data: bytes) -> Reference:
    """A reference from the content of its file.

    Args:
        name: the file, below the store.
        data: its content.

    Raises:
        ValueError: the content is not what was written under this name.
        FormatError: another version of icmbench wrote it.
    """
    facts = parse_guarded(name, data)
    texts = [facts.get(key) for key in ("run", "owner", "host")]
    fingerprints = facts.get("fingerprints")
    if not all(isinstance(text, str) for text in texts) or not isinstance(fingerprints, list):
        raise ValueError("its content is not what was written")
    run, owner, host = (str(text) for text in texts)
    if name != f"{REFERENCES}/{digest([host, run])}.json":
        raise ValueError("its content is that of another reference")
    when, identity = float(facts["time"]), str(facts.get("identity", ""))
    return Reference(name, run, owner, host, when, frozenset(map(str, fingerprints)), identity)


def refuse_while_cleaned(store: Folder) -> None:
    """Refuse to use a store from which `icmbench store clean` removes files now.

    A run calls it after it has taken its lease, and `clean` reads all leases after it has taken its own, so one of the two sees the
    other.

    Raises:
        UserError: it is being cleaned.
    """
    for lease in leases(store, CLEANING):
        if lease.live:
            who = f"process {lease.facts['pid']} of {lease.facts.get('owner')} on {lease.facts.get('host')}"
            raise UserError(f"{store.root} is being cleaned ({who}): run the same command again when that has ended")


def why_unused(reference: Reference, store: Folder) -> str:
    """Why the run folder of a reference does not, or not visibly, use a store; empty if it does.

    A run folder that is there but cannot be understood counts as one that uses the store.
    """
    address = reference.run
    protocol = fsspec.core.split_protocol(address)[0]
    if protocol is not None and protocol not in (*_REMOTE, fsspec.core.split_protocol(store.root)[0]):
        return f"its address is of a kind ({protocol}) that is not looked up"
    if protocol is None and not Path(address).is_absolute():
        return "its address is no absolute path"
    elsewhere = protocol is None and reference.host != socket.gethostname()
    try:
        run = Folder(address)
        if not run.exists(ENVIRONMENT):
            return f"not visible from this machine (it was run on {reference.host})" if elsewhere else "its run folder is gone"
        record = run.read_json(ENVIRONMENT)
    except FormatError:
        return ""
    except (OSError, UserError) as error:
        return f"cannot be reached ({' '.join(str(error).split())})"
    return "" if not record or is_same_place(store_of_run(run, record), store) else "its run folder names another store now"


def store_of_run(run: Folder, record: Mapping[str, Any]) -> Folder:
    """The store of a run folder: the one that its environment.json names, or `store` inside of it.

    Args:
        run: the run folder.
        record: the content of its environment.json.
    """
    inner, recorded = Folder(run.below(INNER_STORE)), record.get("store")
    if not isinstance(recorded, str) or not recorded:
        return inner
    is_certain = "://" in recorded or Path(recorded).is_absolute()
    # An address that is relative to a working directory, or whose folder was moved since, most often means the inner one.
    return inner if (not is_certain or not exists(Folder(recorded))) and exists(inner) else Folder(recorded)


def exists(folder: Folder) -> bool:
    """Whether there is anything at the address of a folder."""
    return folder.exists("")


def is_same_place(first: Folder, second: Folder) -> bool:
    """Whether two folders are the same one."""
    if isinstance(first.fs, LocalFileSystem) and isinstance(second.fs, LocalFileSystem):
        return os.path.realpath(first.path) == os.path.realpath(second.path)
    return type(first.fs) is type(second.fs) and first.path == second.path


def is_digest(text: Any) -> bool:
    """Whether a value has the form of a fingerprint's digest."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{20}", text) is not None
