"""Strict pydantic blocks whose errors read as one sentence."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from icmbench.harness.errors import unknown


class Block(BaseModel):
    """A mapping of the experiment file. An unknown key is an error that names the nearest known one."""

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
