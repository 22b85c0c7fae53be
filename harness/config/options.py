"""A plug-in's options, checked against the signature of its class before anything is constructed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from icmbench.harness.config.errors import UserError
from icmbench.harness.config.files import exists
from icmbench.harness.config.sections import ConfigSection, first_error


def bind(
    plugin: Callable[..., Any], options: Mapping[str, Any], key: str, base: Path, reserved: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Check options against a plug-in's signature: their names and types, and that the files they name exist.

    Args:
        plugin: a class or function; its parameters are its options.
        options: the values from the file or command line, by option name.
        key: the key that holds the options; error messages begin with it.
        base: the folder at which relative paths start: that of the experiment or recipe file.
        reserved: parameters that the caller passes itself, so that they are no options.

    Returns:
        The same options, converted to the parameters' types, with absolute paths. Defaults are left out.

    Raises:
        UserError: an option is unknown, missing or of a wrong type, or its file does not exist.
    """
    hints = parameter_types(plugin)
    fields: dict[str, Any] = {}
    takes_any_option = False
    for parameter in inspect.signature(plugin).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any_option = True
        elif parameter.name not in reserved and parameter.kind is not parameter.VAR_POSITIONAL:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
    if takes_any_option:
        fields.update({name: (Any, ...) for name in options if name not in fields})
    model = create_model("Options", __base__=_Options, **fields)
    try:
        bound = model.model_validate(dict(options))
    except ValidationError as error:
        raise UserError(first_error(error, key)) from None
    source = getattr(plugin, "source", "")  # A sentence on where to download the files and how to lay them out.
    path_options = {name for name, (hint, _) in fields.items() if hint is Path or Path in get_args(hint)}
    return {
        name: _resolve(getattr(bound, name), f"{key}.{name}", base, source) if name in path_options else getattr(bound, name)
        for name in options
    }


def parameter_types(plugin: Callable[..., Any]) -> dict[str, Any]:
    """Types of a plug-in's parameters by name, as far as they can be known."""
    try:
        return get_type_hints(plugin.__init__ if inspect.isclass(plugin) else plugin)
    except Exception:  # The plug-in imports these types for type checkers only; its own constructor checks the values.
        return {}


class _Options(ConfigSection):
    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())


def _resolve(value: Any, key: str, base: Path, source: str) -> Any:
    """The value of a path option as an absolute path.

    Text stays as it is if no such file exists, since an option that takes text or a path may name a model of a hub instead. Text
    with a placeholder, such as `weights-{point}.pth`, is a path that the plug-in completes.
    """
    if not isinstance(value, str | Path):
        return value
    try:
        path = (base / Path(value).expanduser()).absolute()
    except RuntimeError:  # `~someone` who has no home here
        path = (base / Path(value)).absolute()
    if isinstance(value, str) and not exists(path):
        return str(path) if "{" in value else value
    if not exists(path):
        raise UserError(f"{key}: no such file or folder: {path}{source and '. ' + source}")
    return path
