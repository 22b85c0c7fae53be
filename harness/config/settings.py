"""Values of `--set`: options of a codec (`KEY=VALUE`), and any key of an experiment file (`key.path=VALUE`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from icmbench.harness.config.errors import UserError, unknown_message

NAMES = ("label", "name")  # By these keys an entry of a list, such as a codec, is found.


def parse_yaml(text: str, argument: str) -> Any:
    """A YAML value on the command line. Raises UserError, which names the argument, if it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # Bad dates and numbers raise the middle two.
        raise UserError(f"{argument}: not a YAML value") from None


def split_setting(setting: str) -> tuple[str, Any]:
    """Key and YAML value of one `KEY=VALUE`.

    Raises:
        UserError: it has another form.
    """
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set {setting}: write KEY=VALUE")
    return key, parse_yaml(value, f"--set {setting}")


def override(data: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The content of an experiment file with other values for some of its keys.

    A path names keys, separated by points. An entry of a list is named by its label or name, or by its number from 0 on:
    `codecs.jpeg.points=[10, 20]`, `tasks.0.model.device=cuda`, `shard_size=8`.

    Args:
        data: the content of the file; it is not changed.
        settings: values of `--set`, each `key.path=VALUE` with a YAML value; later ones stand above earlier ones.

    Raises:
        UserError: a setting has another form, or its path leads through something that is absent or no mapping.

    Example:
        >>> override({"codecs": [{"name": "jpeg", "points": [5]}]}, ["codecs.jpeg.points=[10, 20]"])
        {'codecs': [{'name': 'jpeg', 'points': [10, 20]}]}
    """
    result = copy.deepcopy(data)
    for setting in settings:
        path, value = split_setting(setting)
        *parents, last = path.split(".")
        holder: Any = result
        for name in parents:
            holder = _child(holder, name, setting)
        if isinstance(holder, list):
            holder[_index(holder, last, setting)] = value
        elif isinstance(holder, dict):
            holder[last] = value
        else:
            raise UserError(f"--set {setting}: {'.'.join(parents)} is a value without keys")
    return result


def _child(holder: Any, name: str, setting: str) -> Any:
    """The value below one step of a path; a mapping that is absent is made, because most options are."""
    if isinstance(holder, list):
        return holder[_index(holder, name, setting)]
    if not isinstance(holder, dict):
        raise UserError(f"--set {setting}: nothing lies below {name!r}")
    if holder.get(name) is None:
        holder[name] = {}
    return holder[name]


def _index(items: list[Any], name: str, setting: str) -> int:
    """Position of an entry of a list, by its label, its name or its number."""
    for key in NAMES:
        matching = [k for k, item in enumerate(items) if isinstance(item, dict) and item.get(key) == name]
        if len(matching) > 1:
            raise UserError(f"--set {setting}: {len(matching)} entries have the {key} {name!r}; name one by its number, from 0 on")
        if matching:
            return matching[0]
    if name.isdecimal() and int(name) < len(items):
        return int(name)
    names = [str(item.get("label", item.get("name"))) for item in items if isinstance(item, dict)]
    raise UserError(f"--set {setting}: {unknown_message('entry', name, names)}")
