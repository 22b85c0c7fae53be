"""derived.json: what the tables of a run were made from, and the SHA-256 of each file that was made.

    experiment, code, stored rows, labels  --digest-->  inputs
    scores.csv, replicates/, pictures.json, ...  --SHA-256-->  files
    all of this  --digest-->  sha256

The file is written last. A reader compares each file with it, so that a table which was cut, edited or exchanged for an older one
is refused instead of being reported as a whole. Its own digest tells that no line of it was lost: the table that is named there
would silently be absent from the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icmbench.harness.config.errors import UserError
from icmbench.harness.store.folder import Folder
from icmbench.harness.store.guarded_json import guarded_bytes, parse_guarded
from icmbench.harness.store.parallel import for_each

NAME = "derived.json"


class Derived:
    """The content of derived.json; there is none if the file is absent, or is not as it was written.

    Args:
        folder: the run folder.

    Attributes:
        inputs: digest of what the tables were made from; empty if there are none.
        missing: what had no score when they were made.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        try:
            content = parse_guarded(folder.full_path(NAME), folder.read(NAME))
        except (OSError, ValueError):
            content = {}
        self.inputs: str = content.get("inputs", "")
        self.missing: list[str] = content.get("missing", [])
        self.report: str = content.get("report", "")
        self._files: dict[str, str] = content.get("files", {})

    def check(self, name: str) -> None:
        """Refuse a file that is not the one that was made.

        Args:
            name: the file, below the run folder.

        Raises:
            UserError: it was changed, or is absent, or no tables were made.
        """
        if not self._files:
            raise UserError(f"{self._folder.root}: holds no finished tables (no whole {NAME}): run the experiment again")
        path = self._folder.full_path(name)
        if name not in self._files:
            raise UserError(f"{path} does not belong to the tables of this run: run the experiment again")
        if self._sha256(name) != self._files[name]:
            raise UserError(f"{path} is not the file that was made with the other tables: run the experiment again to make it anew")

    @property
    def names(self) -> list[str]:
        """The files that belong to the tables."""
        return sorted(self._files)

    def is_whole(self, inputs: str, renewed: Collection[str]) -> bool:
        """Whether the tables were made from these inputs, and every file of them is still the one that was made.

        Args:
            inputs: digest of the inputs as they are now.
            renewed: files that this run has written anew, which decide nothing beside the inputs.
        """
        files = {name: value for name, value in self._files.items() if name not in renewed}
        return bool(files) and self.inputs == inputs and self._hashes(files) == files

    def write(self, inputs: str, names: Iterable[str], missing: Sequence[str], report: str) -> None:
        """Record what was made, after everything else is written.

        Args:
            inputs: digest of what it was made from.
            names: the files; those that do not exist are left out.
            missing: what has no score.
            report: the report's page, below the run folder.
        """
        self.inputs, self.missing, self.report = inputs, list(missing), report
        self._files = {name: value for name, value in self._hashes(names).items() if value}
        self._save()

    def update(self, names: Iterable[str]) -> None:
        """Record files that were made anew from the others."""
        self._files |= self._hashes(names)
        self._save()

    def _save(self) -> None:
        content = {"inputs": self.inputs, "missing": self.missing, "report": self.report, "files": self._files}
        self._folder.write(NAME, guarded_bytes(content))

    def _hashes(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of files by name; empty for those that cannot be read."""
        names = list(names)
        return dict(zip(names, for_each(self._folder.fs, self._sha256, names), strict=True))

    def _sha256(self, name: str) -> str:
        """SHA-256 of a file; empty if it cannot be read."""
        try:
            return hashlib.sha256(self._folder.read(name)).hexdigest()
        except (OSError, UserError):
            return ""


def check_beside(path: Path) -> None:
    """Refuse a scores.csv in a run folder that is not the one that was made there; files elsewhere are not checked.

    Raises:
        UserError: see `Derived.check`.
    """
    if (path.parent / NAME).exists():
        derived = Derived(Folder(path.parent))
        if path.name == "scores.csv" or path.name in derived.names:
            derived.check(path.name)


def content_digest(value: Any) -> str:
    """A digest of nested mappings, sequences, arrays, numbers and text, such as the targets of a task."""
    value_hash = hashlib.sha256()
    _feed(value_hash, value)
    return value_hash.hexdigest()[:32]


def _feed(into: Any, value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        into.update(f"a{value.dtype.str}{value.shape}".encode())
        into.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        into.update(f"m{len(value)}".encode())
        for key in value:
            _feed(into, key)
            _feed(into, value[key])
    elif isinstance(value, (list, tuple, np.ndarray)):
        into.update(f"l{len(value)}".encode())
        for item in value:
            _feed(into, item)
    elif isinstance(value, bytes):
        into.update(b"b%d" % len(value) + value)
    else:
        text = repr(value).encode()
        into.update(b"r%d" % len(text) + text)


def code_digest() -> str:
    """A digest of this package's source files, so that tables are made anew by a changed program."""
    root = Path(__file__).parents[2]
    value = hashlib.sha256()
    for folder in ("harness", "codecs", "tasks", "results"):
        for file in sorted((root / folder).rglob("*.py")):
            value.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return value.hexdigest()[:32]
