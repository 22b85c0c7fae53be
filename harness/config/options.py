"""A plug-in's options, checked against the signature of its class before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.sections import ConfigSection, first_error


def bind(
    plugin: Callable[..., Any], options: Mapping[str, Any], where: str, base: Path, given: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Options checked against the plug-in's signature: names, types, and that the files exist.

    `given` names parameters that the harness passes itself. Relative paths start at `base`, the experiment file's folder.
    """
    try:
        hints = get_type_hints(plugin.__init__ if inspect.isclass(plugin) else plugin)
    except NameError:  # types that the plug-in imports for type checkers only: its own constructor is left to check
        hints = {}
    fields: dict[str, Any] = {}
    open_ended = False
    for parameter in inspect.signature(plugin).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            open_ended = True
        elif parameter.name not in given and parameter.kind is not parameter.VAR_POSITIONAL:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    if open_ended:
        fields.update({key: (Any, ...) for key in options if key not in fields})
    model = create_model("Options", __base__=_Options, **fields)
    try:
        bound = model.model_validate(dict(options))
    except ValidationError as error:
        raise UserError(first_error(error, where)) from None
    source = getattr(plugin, "source", "")  # what to download, from where, into which layout
    paths = {key for key, (hint, _) in fields.items() if hint is Path or Path in get_args(hint)}
    return {
        key: _resolve(getattr(bound, key), f"{where}.{key}", base, source) if key in paths else getattr(bound, key)
        for key in options
    }


class _Options(ConfigSection):
    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())


def _resolve(value: Any, where: str, base: Path, source: str) -> Any:
    """A path made absolute. Text, where the plug-in takes either, may be a name: then it stays, as does all else."""
    if not isinstance(value, str | Path):
        return value
    path = (base / Path(value).expanduser()).absolute()
    if isinstance(value, str) and not path.exists():
        return str(path) if "{" in value else value
    if not path.exists():
        raise UserError(f"{where}: no such file or folder: {path}{source and '. ' + source}")
    return path
