"""Checkpoints in the hub format: a folder on this disk, or a name that huggingface_hub downloads and caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from icmbench.tasks.base import file_sha256
from icmbench.tasks.models.errors import ModelError

DATA_FILES = (".json", ".safetensors", ".bin", ".pt", ".pth", ".model", ".txt", ".jinja")
OFFLINE = (
    "connect once so that it is cached, copy such a cache here (HF_HOME, then HF_HUB_OFFLINE=1), "
    "or give `path` with the model's own files"
)


class Checkpoint:
    """One of `checkpoint` (a hub name, e.g. `org/model`, at `revision`) and `path` (a folder as `save_pretrained` writes it)."""

    def __init__(self, checkpoint: str | None, path: Path | None, revision: str | None) -> None:
        if (checkpoint is None) == (path is None):
            raise ModelError("give either `checkpoint` (a hub name) or `path` (a folder that holds the model)")
        if path is not None and not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in this folder; `path` is a folder as `save_pretrained` writes it")
        self.checkpoint, self.path, self.revision = checkpoint, path, revision

    @property
    def source(self) -> str:
        """What `from_pretrained` is given."""
        return str(self.path or self.checkpoint)

    @cached_property
    def commit(self) -> str | None:
        """The commit that the revision stands for now; None for a folder."""
        return None if self.checkpoint is None else commit_of(self.checkpoint, self.revision)

    @property
    def facts(self) -> dict[str, Any]:
        """For a fingerprint: hub name and commit, or the SHA-256 of every file that can decide an output."""
        if self.path is None:
            return {"checkpoint": self.checkpoint, "commit": self.commit}
        return {"files": folder_sha256(self.path)}

    def load(self, library_class: Any, **options: Any) -> Any:
        """`library_class.from_pretrained(...)` at the resolved commit."""
        with downloading(self.source, local=self.path is not None):
            return library_class.from_pretrained(self.source, revision=self.commit or "main", **options)


def commit_of(repository: str, revision: str | None = None) -> str:
    """The commit that a revision of a hub repository stands for, by the hub, or by its cache where the hub is out of reach."""
    from huggingface_hub import snapshot_download

    with downloading(repository):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json"])).name


def folder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of a model folder's own files by name; documentation and subfolders are left out."""
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in DATA_FILES}


def require(*packages: str) -> None:
    """Raises ModuleNotFoundError, as an import would, for the first package that is not installed; imports nothing.

    Adapters that import late call it when they are built, so that a missing package is named before any work is done.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages, for a fingerprint."""
    return {package: _version(package) for package in packages}


@cache
def _version(package: str) -> str:
    """Read once: a fingerprint is asked for at every shard, and the library parses the package's metadata each time."""
    return metadata.version(package)


@contextmanager
def downloading(what: str, local: bool = False) -> Iterator[None]:
    """Turns every way in which a library says that it got no files, or refuses what is in them, into one sentence."""
    try:
        yield
    except (OSError, RuntimeError, UnpicklingError) as error:  # those of huggingface_hub, requests and urllib are OSErrors
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            raise ModelError(
                f"cannot load {what!r}: its pickle holds more than tensors, and reading it could run any code: "
                "take a .safetensors file of the same weights"
            ) from error
        if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):  # open_clip wraps them
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "the folder must hold all that `save_pretrained` writes" if local else OFFLINE
        raise ModelError(f"cannot load {what!r} ({reason}): {remedy}") from error
