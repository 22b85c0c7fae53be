"""A guest's environment, resolved: its interpreter, its module search path, its variables, and what of it decides results."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icmbench.codecs.base import CodecError, file_sha256
from icmbench.codecs.process import folder_sha256
from icmbench.harness.config.devices import VISIBLE
from icmbench.harness.config.environments import EnvironmentSection
from icmbench.harness.config.errors import UserError

PASSED = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "TORCH_HOME", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
}
PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "XDG_", "SLURM_", "ICMBENCH_")
NO_RESULT_VARIABLES = {VISIBLE, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HOME", "TMPDIR"}  # They decide where and how fast, not what.
SOURCE_SUFFIXES = {
    *(".py", ".pyx", ".pyi", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".so"),
    *(".json", ".toml", ".yaml", ".yml"),
}


@dataclass(frozen=True)
class Environment:
    """Where a guest runs.

    Attributes:
        key: the key of the experiment file, for messages.
        python: absolute path of the interpreter. Links are kept, because a virtual environment is known by the link.
        path: folders that are put before its module search path.
        env: further environment variables, as pairs.
    """

    key: str
    python: str
    path: tuple[Path, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, key: str, section: EnvironmentSection, base: Path) -> Environment:
        """The environment of a section.

        Args:
            key: its key in the experiment file.
            section: its values.
            base: the folder at which relative paths start.

        Raises:
            UserError: there is no such interpreter or folder.
        """
        given = Path(section.python).expanduser()
        if "/" in section.python or os.sep in section.python:
            python = str(base.absolute() / given)
            if not (Path(python).is_file() and os.access(python, os.X_OK)):
                raise UserError(f"{key}.python: no such program: {python}; give the path of a Python interpreter")
        else:
            named = shutil.which(section.python)
            if named is None:
                raise UserError(f"{key}.python: no program {section.python!r} on PATH; give the path of a Python interpreter")
            python = named
        folders = tuple(base.absolute() / Path(name).expanduser() for name in section.path)
        for index, folder in enumerate(folders):
            if not folder.is_dir():
                raise UserError(f"{key}.path.{index}: no such folder: {folder}")
        return cls(key, python, folders, tuple(sorted(section.env.items())))

    @property
    def working_folder(self) -> Path | None:
        """The first folder of `path`, where authors' code finds its configurations; None for that of this process."""
        return self.path[0] if self.path else None

    def variables(self) -> dict[str, str]:
        """All environment variables of the guest: `env`, and of this process's only those that say where and how fast it works.

        A variable that decides a result belongs into `env`, where it is part of every key. Others do not reach the guest.
        """
        variables = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
        variables |= dict(self.env)
        own_devices = os.environ.get(VISIBLE)
        if VISIBLE in dict(self.env) and own_devices is not None:
            variables[VISIBLE] = self._within(own_devices.split(","), dict(self.env)[VISIBLE])
        return variables

    def _within(self, devices: list[str], chosen: str) -> str:
        """Devices chosen by their numbers among those of this process."""
        numbers = [number.strip() for number in chosen.split(",") if number.strip()]
        if not all(number.isdecimal() and int(number) < len(devices) for number in numbers):
            shown = ",".join(devices)
            raise UserError(
                f"{self.key}.env.{VISIBLE}: {chosen!r} is not among the {len(devices)} devices of this process ({shown})"
            )
        return ",".join(devices[int(number)] for number in numbers)

    def facts(self) -> dict[str, Any]:
        """What of the folders and variables decides results, as JSON values.

        Raises:
            UserError: a folder cannot be read, or holds too many files.
        """
        variables = {name: value for name, value in self.env if name not in NO_RESULT_VARIABLES}
        return {"path": [folder_facts(folder, f"{self.key}.path") for folder in self.path], "env": variables}


def folder_facts(folder: Path, key: str) -> dict[str, Any]:
    """What a folder of source code holds.

    Args:
        folder: a checkout of git, a folder in one, or any other folder.
        key: the key that names it, for messages.

    Returns:
        In a checkout, `commit` and, by path, the SHA-256 of each source file that differs from it or that it lacks; files that
        git ignores are left out. Otherwise `files`, one SHA-256 over all files.

    Raises:
        UserError: the folder cannot be read, or holds too many files to be hashed and is no checkout.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames", "--", ".")
    root = _git(folder, "rev-parse", "--show-toplevel")
    if commit is None or changed is None or root is None:
        try:
            return {"files": content_sha256(key, folder)}
        except UserError as error:
            raise UserError(f"{error}; or make it a checkout of git, of which only what differs is hashed") from error
    files: dict[str, Any] = {}
    for entry in filter(None, changed.split("\0")):
        path = Path(root.strip()) / entry[3:]
        if path.suffix == ".pyc":  # Some authors committed them; Python writes them anew when it imports the sources.
            continue
        if path.is_dir():  # A repository within the repository.
            files[entry[3:]] = folder_facts(path, key)
        elif path.suffix in SOURCE_SUFFIXES or entry[:2] != "??":
            files[entry[3:]] = content_sha256(key, path) if path.is_file() else None
    return {"commit": commit.strip()} | ({"changed": files} if files else {})


def content_sha256(key: str, path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder.

    Args:
        key: what names it, for messages.
        path: the file or folder.

    Raises:
        UserError: it cannot be read, or the folder holds too many files.
    """
    try:
        return folder_sha256(key, path) if path.is_dir() else file_sha256(path)
    except CodecError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error}") from error


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints about a folder; None if there is no git or no repository. Hooks of the repository are not run."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder), *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    variables["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(command, capture_output=True, env=variables, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def locate_files(
    options: Mapping[str, Any], point: Any, base: Path, paths: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Find the files that an adapter's options name: weights, configurations, captions.

    Args:
        options: values by option name; texts, and lists and mappings of them, may be paths. "{point}" stands for the point.
        point: the entry of `points:`.
        base: the folder at which relative paths start.
        paths: names of the options that are paths. Of others, a text is one if it names a file by a slash or a suffix: a word such
            as "data" stays a word where a folder has that name.

    Returns:
        The options with absolute paths, and by dotted name the files and folders that exist.
    """
    files: dict[str, Path] = {}

    def complete(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: complete(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [complete(item, f"{name}.{index}") for index, item in enumerate(value)]
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            return value
        is_path = name.split(".")[0] in paths or isinstance(value, Path) or "/" in str(value) or Path(str(value)).suffix != ""
        text = str(value).replace("{point}", str(point)) if isinstance(point, int | float | str) else str(value)
        path = (base / text).absolute()
        try:
            exists = is_path and path.exists()
        except OSError:  # A text that is too long for a name.
            exists = False
        if exists:
            files[name] = path
        return type(value)(path if exists else text) if isinstance(value, Path) else str(path if exists else text)

    return {name: complete(value, name) for name, value in options.items()}, files
