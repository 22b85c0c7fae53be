"""Strict pydantic models of YAML files. Every error is one sentence with the file, the key and the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from icmbench.harness.config.errors import UserError, unknown_message
from icmbench.harness.config.files import read_bytes
from icmbench.harness.config.secrets import REMEDY, find_credential
from icmbench.harness.config.settings import override

MAX_VALUES = 100_000  # Bound on the values of one file after its aliases are written out: a small file can expand without end.


class ConfigSection(BaseModel):
    """A mapping in an experiment or recipe file. An unknown key is an error that names the most similar known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(unknown_message("key", str(key), cls.model_fields))
        return data


def first_error(error: ValidationError, prefix: str) -> str:
    """The first of pydantic's errors in one line, such as `codecs.0.points: Input should be a valid list`.

    Args:
        error: what pydantic raised.
        prefix: the file or key that was validated; the path of keys below it is appended.
    """
    details = error.errors(include_url=False)[0]
    message = details["msg"].removeprefix("Value error, ")
    return f"{'.'.join([prefix, *map(str, details['loc'])])}: {message}"


_MERGE = object()  # Stands for the key `<<`, which takes over another mapping.


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys; plain YAML would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            # Keys are compared by their values: `1` and `0x1` are one key, and so are `yes` and `true`.
            value = _MERGE if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key)
            line = key.start_mark.line + 1
            if value in lines:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice, on lines {lines[value]} and {line}")
            lines[value] = line
        return super().construct_mapping(node, deep)


def _count_values(value: Any, counts: dict[int, float]) -> float:
    """Number of values of a document after its aliases are written out; infinite if it contains itself.

    Args:
        value: the document or a part of it.
        counts: counts of the lists and mappings that were visited before, by object id.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in counts:
        counts[id(value)] = math.inf  # Stays infinite for a container that is visited again before it is counted: a cycle.
        children = value if isinstance(value, list) else [*value.keys(), *value.values()]
        counts[id(value)] = 1 + sum(_count_values(child, counts) for child in children)
    return counts[id(value)]


def _refuse_half_characters(value: Any, key: str) -> None:
    """Raise UserError for text with half of a surrogate pair, such as "\\ud800", which no file or terminal can hold."""
    if isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_half_characters(name, key)
            _refuse_half_characters(item, f"{key}.{name}")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{key}: {value!a} holds half of a surrogate pair; write the character itself, in UTF-8")


_Root = TypeVar("_Root", bound=ConfigSection)


def load_section(section: type[_Root], path: Path, description: str, settings: Sequence[str] = ()) -> _Root:
    """Read and validate a YAML file.

    Args:
        section: the model of the whole file. It has a field `folder`, which is set to the file's folder.
        path: the file.
        description: what error messages call the file, such as `recipe file`.
        settings: values of `--set`, which stand above those of the file.

    Raises:
        UserError: the file cannot be read, is no valid YAML, or does not fit the model.
    """
    data = read_mapping(path, description, settings)
    try:
        return section.model_validate({**data, "folder": path.parent.absolute()})
    except ValidationError as error:
        raise UserError(first_error(error, str(path))) from None


def read_mapping(path: Path, description: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a YAML file, with the values of `--set` in it, before it is compared with a model.

    Args:
        path: the file.
        description: what error messages call the file.
        settings: values of `--set`.

    Raises:
        UserError: the file cannot be read, is no valid YAML, is no mapping, or holds a credential.
    """
    try:
        text = read_bytes(path, description).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    try:
        data = yaml.load(text, _Loader)  # _Loader is a SafeLoader: it builds no Python objects.
        count = _count_values(data, {})
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # Bad dates and numbers raise the last two.
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if count > MAX_VALUES:
        raise UserError(f"{path}: its aliases expand to more than {MAX_VALUES} values; write the file out")
    if not isinstance(data, dict):
        raise UserError(f"{path}: the {description} is a mapping; icmbench's README shows one")
    data = override(data, settings)
    _refuse_half_characters(data, str(path))
    place = find_credential(data)
    if place is not None:
        raise UserError(f"{path}: {place}: holds what looks like a credential, which would be published with the results; {REMEDY}")
    if "folder" in data:
        raise UserError(f"{path}: unknown key 'folder'; paths start at the file's folder by themselves")
    return data
