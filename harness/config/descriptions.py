"""What a plug-in's class says of itself, read from its source file without importing it.

    entry point --> source file --> class block --docstring, weights, extra, unpackaged--> Description
                                        \\--what it lacks: its bases, by the imports at the head of the file--/

Importing all plug-ins takes longer than importing pandas, most of it in numpy and in their own libraries. This is for the plug-ins
of this package: a test compares what is read with the imported classes. A plug-in of another package, and one that cannot be read
for certain, has no description here, and is imported by whoever asks.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "icmbench."
FACTS = ("weights", "extra", "unpackaged", "usable_runs_programs")
# A class without bases of this package: these give it neither a docstring nor an attribute that is asked for.
_PLAIN_BASES = {"typing", "abc"}
# From the first line of a class to the next line that is neither empty nor indented; `)` may end the list of its bases.
_CLASS = re.compile(r"^class (\w+)\b.*\n(?:(?:[ \t#)].*)?\n)*", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:class |def |async def |@)", re.MULTILINE)
_IMPORT = re.compile(r"^from (\S+) import (\([^)]*\)|.*)", re.MULTILINE)
_METHOD = re.compile(r"^    (?:def |async def |@)", re.MULTILINE)
_USABLE = re.compile(r"^    (?:def )?usable\b", re.MULTILINE)
_LATE_FACT = re.compile(rf"^    (?:{'|'.join(FACTS)})\b", re.MULTILINE)


class Description(NamedTuple):
    """What a class says of itself, its bases included.

    Attributes:
        summary: the first line of its docstring; "" if there is none.
        facts: its class attributes of the names `FACTS`.
        has_usable: whether it has a method `usable`, which only the imported class can answer.
    """

    summary: str
    facts: Mapping[str, Any]
    has_usable: bool


def describe(entry_point: EntryPoint) -> Description | None:
    """The description of a plug-in of this package; None for other plug-ins, and for one that cannot be read for certain."""
    if not entry_point.module.startswith(PACKAGE):
        return None
    try:
        return _describe_class(entry_point.module, entry_point.attr)
    except (OSError, SyntaxError, LookupError, TypeError, ValueError):
        return None


def imported_description(plugin: Any) -> Description:
    """The description of a plug-in that was imported."""
    import inspect

    facts = {name: getattr(plugin, name) for name in FACTS if hasattr(plugin, name)}
    return Description(_summary(inspect.getdoc(plugin)), facts, hasattr(plugin, "usable"))


def _summary(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0].rstrip()


# The functions below raise LookupError, ValueError, TypeError or SyntaxError for what cannot be read for certain.


@functools.cache
def _describe_class(module: str, name: str) -> Description:
    block = _blocks(module)[name]
    head, *methods = _METHOD.split(block, maxsplit=1)
    if methods and _LATE_FACT.search(methods[0]):
        raise ValueError("a fact after the first method")
    node = ast.parse(head if "\n    " in head else f"{head}    ...").body[0]
    assert isinstance(node, ast.ClassDef)
    summary = _summary(ast.get_docstring(node, clean=False))
    facts = {key: _value(value, module) for key, value in _assignments(node) if key in FACTS}
    has_usable = _USABLE.search(block) is not None
    for base in node.bases:
        inherited = _describe_base(module, base)
        summary = summary or inherited.summary
        facts = {**inherited.facts, **facts}
        has_usable = has_usable or inherited.has_usable
    return Description(summary, facts, has_usable)


def _describe_base(module: str, base: ast.expr) -> Description:
    while isinstance(base, ast.Subscript):  # Base[T]
        base = base.value
    if not isinstance(base, ast.Name):
        raise ValueError("a base that is no plain name")
    if base.id in _blocks(module):
        return _describe_class(module, base.id)
    origin, name = _origin_of(base.id, module)
    if origin in _PLAIN_BASES:
        return Description("", {}, False)
    if not origin.startswith(PACKAGE):
        raise ValueError("a base of another package")
    return _describe_class(origin, name)


def _assignments(node: ast.ClassDef | ast.Module) -> list[tuple[str, ast.expr]]:
    """(name, value) of the assignments to one name each, annotated or not."""
    found = []
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(target, ast.Name):
                found.append((target.id, statement.value))
    return found


def _value(node: ast.expr, module: str) -> Any:
    """The value of a literal, or of a text with names of the module's constants in it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(_value(part, module)) for part in node.values)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.format_spec is None:
        return ast.literal_eval(dict(_assignments(ast.parse(_head(module))))[node.value.id])
    return ast.literal_eval(node)


@functools.cache
def _head(module: str) -> str:
    """What stands before the first class or function of a module."""
    return _DEFINITION.split(_source(module), maxsplit=1)[0]


def _origin_of(name: str, module: str) -> tuple[str, str]:
    """The module from which a module imports a name, and the name there. Raises LookupError if it does not."""
    for origin, names in _IMPORT.findall(_head(module)):
        for item in names.strip("()").split(","):
            original, _, alias = item.strip().partition(" as ")
            if name == (alias or original).strip():
                return origin, original
    raise LookupError(name)


@functools.cache
def _blocks(module: str) -> Mapping[str, str]:
    """The text of every class of a module, from its first line to the next line that is not indented, by name."""
    return {match[1]: match[0] for match in _CLASS.finditer(_source(module))}


@functools.cache
def _source(module: str) -> str:
    """The text of a module; empty if it is no source file."""
    spec = find_spec(module)
    origin = spec.origin if spec is not None else None
    return Path(origin).read_text(encoding="utf-8") if origin is not None and origin.endswith(".py") else ""
