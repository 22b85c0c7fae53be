"""Codecs, tasks, datasets and models are found by entry point; the built-in ones too."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from icmbench.harness.config.errors import UserError, unknown

KINDS = ("codecs", "tasks", "datasets", "models")


@functools.cache
def available(kind: str) -> Mapping[str, EntryPoint]:
    """Entry points of one kind by name, sorted."""
    return {point.name: point for point in sorted(entry_points(group=f"icmbench.{kind}"), key=lambda point: point.name)}


def load(kind: str, name: str, where: str) -> Callable[..., Any]:
    """The class behind a name. `where` is the key of the experiment file that asked for it."""
    found = available(kind)
    if name not in found:
        raise UserError(f"{where}: {unknown(kind.removesuffix('s'), name, found)}")
    with explained(name):
        return found[name].load()


@contextmanager
def explained(name: str, plugin: Any = None) -> Iterator[None]:
    """Turns a missing package into the install command of the extra that holds it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("icmbench"):
            raise
        extra = getattr(plugin, "extra", None)
        remedy = f"python -m pip install 'icmbench[{extra}]'" if extra else f"install {error.name}"
        raise UserError(f"{name!r} needs the package {error.name!r}, which is not installed: {remedy}") from error
