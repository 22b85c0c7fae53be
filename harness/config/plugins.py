"""Codecs, tasks, datasets and models, found by entry point: the built-in ones as well as those of other packages."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from icmbench.harness.config.errors import UserError, unknown_message

KINDS = ("codecs", "tasks", "datasets", "models")


@functools.cache
def available(kind: str) -> Mapping[str, EntryPoint]:
    """Entry points of one kind by name, sorted.

    Args:
        kind: one of `KINDS`, or "training" for the objectives of `icmbench train`.
    """
    points = _installed(tuple(sys.path)).select(group=f"icmbench.{kind}")
    return {point.name: point for point in sorted(points, key=lambda point: point.name)}


@functools.cache
def _installed(path: tuple[str, ...]) -> Any:
    """Entry points of all packages on a search path, which is that of Python; looked up once for all kinds."""
    return entry_points()


def load(kind: str, name: str, key: str) -> Callable[..., Any]:
    """Import a plug-in.

    Args:
        kind: its kind, as in `available`.
        name: the name of its entry point.
        key: the key or option that named it; error messages begin with it.

    Returns:
        The plug-in's class.

    Raises:
        UserError: there is no plug-in of this name, it cannot be imported, or a package that it imports is not installed.
    """
    entry_points_by_name = available(kind)
    if name not in entry_points_by_name:
        raise UserError(f"{key}: {unknown_message(kind.removesuffix('s'), name, entry_points_by_name)}")
    try:
        with explain_missing_package(name):
            return entry_points_by_name[name].load()
    except (UserError, ModuleNotFoundError):
        raise
    except (Exception, SystemExit) as error:  # A plug-in of another package may break in any way.
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{key} ({name}): cannot be loaded: {cause}: mend or uninstall that package") from error


@contextmanager
def explain_missing_package(name: str, plugin: Any = None) -> Iterator[None]:
    """Turn the error for a missing package into one that names the command that installs it.

    Args:
        name: the plug-in or command that needs the package.
        plugin: an object whose attribute `extra`, if it has one, names the extra of icmbench that installs the package.

    Raises:
        UserError: a package other than icmbench is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("icmbench"):
            raise
        extra = getattr(plugin, "extra", None)
        remedy = f"python -m pip install 'icmbench[{extra}]'" if extra else f"install {error.name}"
        raise UserError(f"{name!r} needs the package {error.name!r}, which is not installed: {remedy}") from error
