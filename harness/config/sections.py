"""Strict pydantic blocks, and the YAML files of them, whose errors read as one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from icmbench.harness.config.errors import UserError, unknown

MAX_NODES = 100_000  # of a file, aliases written out


class ConfigSection(BaseModel):
    """A mapping of an experiment or recipe file. An unknown key is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(unknown("key", str(key), cls.model_fields))
        return data


def first_error(error: ValidationError, where: str) -> str:
    """`codecs.0.points: Input should be a valid list`."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join([where, *map(str, first['loc'])])}: {message}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"the key {twice!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _expanded(value: Any, known: dict[int, float]) -> float:
    """How many values a document holds once its aliases are written out; infinite where it contains itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # met again before it is counted: a cycle
        inner = value if isinstance(value, list) else [*value.keys(), *value.values()]
        known[id(value)] = 1 + sum(_expanded(item, known) for item in inner)
    return known[id(value)]


_Root = TypeVar("_Root", bound=ConfigSection)


def load_section(kind: type[_Root], path: Path, what: str) -> _Root:
    """A whole file as a block with a field `folder`, the file's own. what: how errors call it. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the {what} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    try:
        data = yaml.load(text, _Loader)  # a SafeLoader
        size = _expanded(data, {})
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two: of numbers and dates
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if size > MAX_NODES:
        raise UserError(f"{path}: its aliases expand to more than {MAX_NODES} values; write the file out")
    if not isinstance(data, dict):
        raise UserError(f"{path}: the {what} is a mapping; icmbench's README shows one")
    if "folder" in data:
        raise UserError(f"{path}: unknown key 'folder'; paths start at the file's folder by themselves")
    try:
        return kind.model_validate({**data, "folder": path.parent.absolute()})
    except ValidationError as error:
        raise UserError(first_error(error, str(path))) from None
