"""`icmbench list`: plug-ins and shipped recipes, and which plug-ins can be used on this machine."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from icmbench.harness.config import plugins
from icmbench.harness.config.recipe import shipped_recipes


@dataclass(frozen=True)
class Entry:
    """A plug-in or recipe as `list` and `doctor` show it.

    Attributes:
        name: what an experiment file or command calls it.
        summary: the first line of the class docstring, or the first comment of the recipe.
        weights: the weights that the plug-in needs, or "".
        trouble: why it cannot be used here and what to do about it; "" if it can be used.
    """

    name: str
    summary: str
    weights: str = ""
    trouble: str = ""


def plugin_entries(kind: str) -> list[Entry]:
    """All plug-ins of one kind, one of `plugins.KINDS`."""
    entries = []
    for name in plugins.available(kind):
        try:
            plugin = plugins.load(kind, name, kind)
        except Exception as error:  # A plug-in of another package may break in any way; the others must still be listed.
            entries.append(Entry(name, "", trouble=f"cannot be loaded: {error}"))
            continue
        summary = (inspect.getdoc(plugin) or "").partition("\n")[0]
        usable = getattr(plugin, "usable", None)  # An optional class method that says why not, e.g. that a program is absent.
        trouble = _missing_packages(getattr(plugin, "extra", None)) or (usable() if usable else None) or ""
        entries.append(Entry(name, summary, getattr(plugin, "weights", ""), trouble))
    return entries


def recipe_entries() -> list[Entry]:
    """The shipped recipes."""
    return [
        Entry(name, path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# "))
        for name, path in shipped_recipes().items()
    ]


def print_list(kind: str | None) -> None:
    """Print what can be named in an experiment file or as a recipe.

    Args:
        kind: one of `plugins.KINDS`, or "recipes"; None for all of them, each below its name.
    """
    for listed in [kind] if kind else [*plugins.KINDS, "recipes"]:
        if not kind:
            print(f"{listed}:")
        _print_entries(recipe_entries() if listed == "recipes" else plugin_entries(listed))


def _print_entries(entries: Sequence[Entry]) -> None:
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        print(f"  {entry.name:<{width}}  {entry.summary}")
        for line in filter(None, (entry.weights and f"weights: {entry.weights}", entry.trouble)):
            print(f"  {'':<{width}}    {line}")


def _missing_packages(extra: str | None) -> str:
    """Which packages of an extra of icmbench are not installed, and the command that installs them; "" if none is missing."""
    if not extra:
        return ""
    requirements = [line for line in requires("icmbench") or [] if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", line)]
    absent = []
    for requirement in requirements:
        name = re.split(r"[\s;<>=!~\[(]", requirement, maxsplit=1)[0]
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return f"needs {', '.join(absent)}: python -m pip install 'icmbench[{extra}]'" if absent else ""
