"""Checkpoints of the Hugging Face hub: a folder on this disk, or a name that huggingface_hub downloads and caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from icmbench.tasks.fingerprints import file_sha256, walk_files
from icmbench.tasks.models.errors import ModelError

# What describes a model but decides nothing. Hidden files and folders belong to git and to the hub's client.
DOCUMENTATION = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf")
OFFLINE_REMEDY = (
    "connect once so that it is cached, copy such a cache here (HF_HOME, then HF_HUB_OFFLINE=1), "
    "or give `path` with the model's own files"
)


class Checkpoint:
    """A model of the hub, given by its name or as a folder.

    Args:
        checkpoint: hub name such as `org/model`; None if `path` is given.
        path: folder as `save_pretrained` writes it; None if `checkpoint` is given.
        revision: branch, tag or commit of the hub repository; None for its main branch.

    Raises:
        ModelError: both or neither of `checkpoint` and `path` are given, or the folder holds no config.json.
    """

    def __init__(self, checkpoint: str | None, path: Path | None, revision: str | None) -> None:
        if (checkpoint is None) == (path is None):
            raise ModelError("give either `checkpoint` (a hub name) or `path` (a folder that holds the model)")
        if path is not None and not (path / "config.json").is_file():
            raise ModelError(f"{path}: no config.json in this folder; `path` is a folder as `save_pretrained` writes it")
        self.checkpoint, self.path, self.revision = checkpoint, path, revision

    @property
    def source(self) -> str:
        """The first argument of `from_pretrained`: the folder or the hub name."""
        return str(self.path or self.checkpoint)

    @cached_property
    def commit(self) -> str | None:
        """The commit that the revision stands for when this is first read; None for a folder."""
        return None if self.checkpoint is None else commit_of(self.checkpoint, self.revision)

    @property
    def facts(self) -> dict[str, Any]:
        """Entries for a fingerprint: hub name and commit, or the SHA-256 of every file of the folder and its subfolders."""
        if self.path is None:
            return {"checkpoint": self.checkpoint, "commit": self.commit}
        return {"files": folder_sha256(self.path)}

    def load(self, library_class: Any, **options: Any) -> Any:
        """Call `library_class.from_pretrained` with the folder, or with the hub name at the resolved commit.

        Args:
            library_class: class of transformers.
            options: further keywords of `from_pretrained`.

        Returns:
            What `from_pretrained` returns.

        Raises:
            ModelError: files are missing or unsafe, or the hub cannot be reached.
        """
        with downloading(self.source, local=self.path is not None):
            return library_class.from_pretrained(self.source, revision=self.commit or "main", **options)


def commit_of(repository: str, revision: str | None = None) -> str:
    """The commit that a revision of a hub repository stands for, from the hub's cache on this disk if the hub is out of reach.

    Args:
        repository: hub name such as `org/model`.
        revision: branch, tag or commit; None for the main branch.

    Raises:
        ModelError: neither the hub nor its cache has the repository.
    """
    from huggingface_hub import snapshot_download

    with downloading(repository):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json"])).name


def folder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a model folder and its subfolders, without documentation and hidden ones.

    Links are followed, and what is no regular file is left out, as `walk_files` says.

    Returns:
        Hex digits by path relative to the folder, sorted.
    """
    files = walk_files(folder, lambda path: path.name.startswith("."))
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files if path.suffix.lower() not in DOCUMENTATION}
    return dict(sorted(hashes.items()))


def require(*packages: str) -> None:
    """Check that packages are installed, without importing them.

    Adapters import their library when they see the first image. They call this function in their constructor, so that a missing
    package is reported before any work is done.

    Raises:
        ModuleNotFoundError: a package is missing; message and attributes are those of a failed import.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions by package, for a fingerprint."""
    return {package: _version(package) for package in packages}


@cache
def _version(package: str) -> str:
    """An installed version. It is cached because every shard needs the fingerprint and a look-up parses the package's metadata."""
    return metadata.version(package)


@contextmanager
def downloading(source: str, local: bool = False) -> Iterator[None]:
    """Turn a library's errors about missing, unreachable or unsafe files into ModelError. Other errors pass.

    Args:
        source: hub name, folder or file, for the message.
        local: whether `source` lies on this disk, which decides the remedy in the message.

    Raises:
        ModelError: the files are missing, cannot be downloaded, or hold a pickle that could run code.
    """
    try:
        yield
    except (OSError, RuntimeError, UnpicklingError) as error:  # huggingface_hub, requests and urllib raise OSErrors.
        if isinstance(error, UnpicklingError) or "weights_only" in str(error):
            raise ModelError(
                f"cannot load {source!r}: its pickle holds more than tensors, and reading it could run any code: "
                "take a .safetensors file of the same weights"
            ) from error
        if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):  # open_clip wraps OSErrors.
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "the folder must hold all that `save_pretrained` writes" if local else OFFLINE_REMEDY
        raise ModelError(f"cannot load {source!r} ({reason}): {remedy}") from error
