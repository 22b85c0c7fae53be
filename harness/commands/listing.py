"""`icmbench list`: plug-ins and shipped recipes, and which plug-ins can be used on this machine."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires
from importlib.util import find_spec

from icmbench.harness.config import plugins
from icmbench.harness.config.descriptions import describe, imported_description
from icmbench.harness.config.recipe_files import shipped_recipes


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


def plugin_entries(kind: str, load_all: bool = False) -> list[Entry]:
    """All plug-ins of one kind.

    Args:
        kind: one of `plugins.KINDS`.
        load_all: whether every plug-in is imported and every program is tried, so that what cannot be used is found. Otherwise the
            plug-ins of this package are read from their source where that suffices, and no programs are started, which is quicker.
    """
    return [_plugin_entry(kind, name, load_all) for name in plugins.available(kind)]


def _plugin_entry(kind: str, name: str, load_all: bool) -> Entry:
    description = None if load_all else describe(plugins.available(kind)[name])
    try:
        if description is None:
            description = imported_description(plugins.load(kind, name, kind))
        facts = description.facts
        trouble = _missing_packages(facts.get("extra")) or _missing_modules(facts.get("unpackaged", {}))
        asks_usable = description.has_usable and (load_all or not facts.get("usable_runs_programs", False))
        if asks_usable and not trouble:
            # `usable` is an optional class method that says why not, e.g. that a program is absent.
            trouble = plugins.load(kind, name, kind).usable() or ""  # type: ignore[attr-defined]
    except Exception as error:  # A plug-in of another package may break in any way; the others must still be listed.
        return Entry(name, "", trouble=f"cannot be loaded: {error}")
    return Entry(name, description.summary, facts.get("weights", ""), trouble)


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


def _missing_modules(unpackaged: Mapping[str, str]) -> str:
    """The first module that is not installed, of those that no extra installs, and how one gets it; "" if none is missing."""
    return next((f"needs {module}, {remedy}" for module, remedy in unpackaged.items() if find_spec(module) is None), "")


@functools.cache
def _missing_packages(extra: str | None) -> str:
    """Which packages of an extra of icmbench are not installed, and the command that installs them; "" if none is missing."""
    absent = [name for name in _packages_by_extra().get(extra or "", ()) if not _is_installed(name)]
    return f"needs {', '.join(absent)}: python -m pip install 'icmbench[{extra}]'" if absent else ""


@functools.cache
def _packages_by_extra() -> Mapping[str, Sequence[str]]:
    """The packages that each extra of icmbench installs."""
    packages: dict[str, list[str]] = {}
    requirements = "\n".join(requires("icmbench") or [])
    for name, extra in re.findall(r"""^([\w.-]+).*extra == ['"]([\w.-]+)['"]""", requirements, re.MULTILINE):
        packages.setdefault(extra, []).append(name)
    return packages


@functools.cache
def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True
