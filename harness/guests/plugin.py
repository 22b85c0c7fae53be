"""Classes of guests in the place of plug-in classes: their options are checked as any other's, and calling one makes an object.

An entry `{name: guest, environment: msillm, set: {file: adapters/ms_illm.py}}` of `codecs` means an adapter file, and an entry
`{name: compressai, environment: zoo}` a built-in class that runs elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from icmbench.codecs.base import file_sha256
from icmbench.harness.config import plugins
from icmbench.harness.config.errors import UserError, unknown_message
from icmbench.harness.config.options import parameter_types
from icmbench.harness.guests.codec import GuestCodec
from icmbench.harness.guests.environment import Environment, content_sha256, locate_files
from icmbench.harness.guests.model import GuestModel
from icmbench.harness.guests.process import GuestDied, call_with_retry
from icmbench.harness.guests.remote import GuestError, Source, unpack

GUEST = "guest"  # Name of the plug-in that takes an adapter file.
OWN_INTERPRETER = "this interpreter"
SUPPLIED = ("folder", "decode_only", "seed")  # Arguments that the harness supplies; none of them decides the result of a point.
OWN_OPTIONS = ("file", "class")  # Options of the plug-in `guest` itself; all others go to the adapter.
SHIPPED = Path(__file__).parent.parent.parent / "codecs" / "adapters"
INSTALLERS = {"pip", "setuptools", "wheel", "uv"}  # Packages that no result depends on.
BUILT_IN_PYTHON = (3, 10)  # The oldest one that reads the modules of icmbench itself.
WANTED = ("default_points", "weights", "extra")
Kind = Literal["codecs", "models"]


class GuestPlugin:
    """Stands for a class in a guest.

    Args:
        kind: what the class is.
        source: where it is.
        base: the folder at which relative paths in options start.
        signature: of the class.
        hints: types of its parameters, as far as they are known here.
        described: attributes of the class.
        reported: its source as keys hold it.
    """

    def __init__(
        self,
        kind: Kind,
        source: Source,
        base: Path,
        signature: inspect.Signature,
        hints: Mapping[str, Any],
        described: Mapping[str, Any],
        reported: Mapping[str, Any],
    ) -> None:
        self._kind, self._source, self._base, self._reported = kind, source, base, dict(reported)
        self.__signature__ = signature
        self.__annotations__ = dict(hints)
        for name in WANTED:
            if described.get(name) is not None:
                setattr(self, name, described[name])

    def __call__(self, point: Any = None, **arguments: Any) -> Any:
        """The object, made in the guest. Raises UserError if it cannot be made."""
        source, point, arguments, read_facts = self.prepare(point, arguments)
        if self._kind == "codecs":
            return GuestCodec(source, point, arguments, read_facts)
        return GuestModel(source, arguments, read_facts)

    def prepare(
        self, point: Any, arguments: Mapping[str, Any]
    ) -> tuple[Source, Any, dict[str, Any], Callable[[bool], dict[str, Any]]]:
        """What `GuestCodec` takes: the source, the point, the arguments with absolute paths, and how to read what decides results.

        Raises:
            UserError: a file that an argument names is not there.
        """
        arguments = dict(arguments)
        if "adapter" not in self._reported:  # A built-in class states by itself what decides its results.
            return self._source, point, arguments, lambda anew: {**self._reported, "environment": self._environment_facts(anew)}
        given = {name: value for name, value in arguments.items() if name not in SUPPLIED}
        completed, files = locate_files(given, point, self._base, self.__annotations__)
        for name in self.__annotations__.keys() & completed.keys():
            if completed[name] is None:
                continue
            completed[name] = Path(completed[name])
            if name not in files:
                absent = self._base.absolute() / completed[name]
                raise UserError(f"{self._source.description}: {name}: no such file or folder: {absent}")

        def read_facts(anew: bool) -> dict[str, Any]:
            hashes = {name: content_sha256(f"{self._source.description}: {name}", path) for name, path in files.items()}
            options = {name: hashes.get(name, value) for name, value in given.items()}
            adapter = file_sha256(dict(self._source.place)["file"])
            environment = self._environment_facts(anew)
            return {**self._reported, "adapter": adapter, "options": options, "files": hashes, "environment": environment}

        return self._source, point, arguments | completed, read_facts

    def _environment_facts(self, anew: bool) -> dict[str, Any]:
        read = read_environment_state if anew else environment_state
        return _deciding(read(self._source.environment))


def built_in_plugin(kind: Kind, name: str, key: str, environment: Environment, base: Path) -> GuestPlugin:
    """A plug-in of icmbench, or of another package that is installed here too, which runs in a guest.

    Args:
        kind: its kind.
        name: name of its entry point.
        key: the key that names it, for messages.
        environment: where it runs.
        base: the folder at which relative paths in options start.

    Raises:
        UserError: there is no such plug-in, it cannot be loaded here to check its options, or the guest's Python is too old for it.
    """
    plugin = plugins.load(kind, name, key)
    if not plugin.__module__.startswith(("icmbench.codecs.", "icmbench.tasks.models.")):
        raise UserError(f"{key}: {name!r} is no codec or model of icmbench itself; write an adapter file and use `name: guest`")
    python = environment_state(environment)["python"]
    if tuple(map(int, python.split(".")[:2])) < BUILT_IN_PYTHON:
        least = ".".join(map(str, BUILT_IN_PYTHON))
        raise UserError(
            f"{key}: {name!r} needs Python {least} or newer, and {environment.key} has {python}; an adapter file needs only 3.8"
        )
    source = Source(environment, (("module", plugin.__module__), ("class", plugin.__qualname__)), f"{key} ({name})")
    described = {wanted: getattr(plugin, wanted, None) for wanted in WANTED}
    return GuestPlugin(kind, source, base, inspect.signature(plugin), parameter_types(plugin), described, {"built_in": name})


def adapter_plugin(
    kind: Kind, options: Mapping[str, Any], key: str, environment: Environment, base: Path
) -> tuple[GuestPlugin, dict[str, Any]]:
    """The class of an adapter file.

    Args:
        kind: what it is.
        options: those of the section: `file`, `class` where the file has several, and those of the adapter.
        key: the key that holds them, for messages.
        environment: where it runs.
        base: the folder at which relative paths start.

    Returns:
        The class, and the options without those that name it.

    Raises:
        UserError: there is no such file or class, or it cannot be loaded.
    """
    path = _adapter_file(options.get("file"), f"{key}.file", base)
    name = _adapter_class(path, options.get("class"), f"{key}.class")
    source = Source(environment, (("file", str(path)), ("class", name)), f"{key} ({path.name}, {name})")
    described = source.describe(WANTED)
    parameters, hints = [], {}
    for parameter in described["parameters"]:
        default = inspect.Parameter.empty if parameter["required"] else None
        kind_of = getattr(inspect.Parameter, parameter["kind"])
        if kind_of in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            default = inspect.Parameter.empty
        parameters.append(inspect.Parameter(parameter["name"], kind_of, default=default))
        if parameter["is_path"]:
            hints[parameter["name"]] = str | Path | None  # A text with "{point}" is no file yet.
    reported = {"adapter": file_sha256(path), "class": name}
    plugin = GuestPlugin(kind, source, base, inspect.Signature(parameters), hints, described["members"], reported)
    return plugin, {option: value for option, value in options.items() if option not in OWN_OPTIONS}


def own_environment() -> Environment:
    """The interpreter that runs icmbench, for adapters that name no environment."""
    return Environment(OWN_INTERPRETER, sys.executable)


@functools.cache
def environment_state(environment: Environment) -> dict[str, Any]:
    """What an environment holds, as environment.json records it: versions of the interpreter and of all packages, and its folders.

    Raises:
        UserError: it cannot be started, or its folders cannot be read.
    """
    return read_environment_state(environment)


def read_environment_state(environment: Environment) -> dict[str, Any]:
    """See `environment_state`; everything is read anew."""
    try:
        versions = call_with_retry(environment, lambda process: unpack(process.ask({"do": "versions"}, 600.0), environment.key))
    except (GuestDied, GuestError) as error:
        raise UserError(f"{environment.key}: {environment.python} {error}") from error
    return {**versions, **environment.facts()}


def _deciding(state: Mapping[str, Any]) -> dict[str, Any]:
    """What of an environment's state decides results. All packages count, by one digest: any may be what an adapter calls."""
    packages = {name: version for name, version in state["packages"].items() if name not in INSTALLERS}
    digest = hashlib.sha256(json.dumps(packages, sort_keys=True).encode()).hexdigest()
    return {**{name: state[name] for name in ("python", "numpy", "torch", "path", "env")}, "packages": digest}


def _adapter_file(value: Any, key: str, base: Path) -> Path:
    """The file of an adapter. A name without slash and suffix stands for one of those that come with icmbench."""
    shipped = {path.stem for path in SHIPPED.glob("*.py") if not path.stem.startswith("_")}
    if not isinstance(value, str | Path):
        raise UserError(f"{key}: name the adapter file, or one of {', '.join(sorted(shipped)) or 'none'}")
    text = str(value)
    if "/" not in text and not text.endswith(".py"):
        if text not in shipped:
            raise UserError(f"{key}: {unknown_message('adapter', text, shipped)}; a file of your own ends with .py")
        return SHIPPED / f"{text}.py"
    path = (base / Path(text).expanduser()).absolute()
    if not path.is_file():
        raise UserError(f"{key}: no such file: {path}")
    return path


def _adapter_class(path: Path, value: Any, key: str) -> str:
    """Name of the adapter's class: the given one, or the only one in the file that is no error and has a public name."""
    if isinstance(value, str):
        return value
    if value is not None:
        raise UserError(f"{key}: the name of a class, not {value!r}")
    names = re.findall(r"^class +([A-Za-z]\w*)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    names = [name for name in names if not name.endswith("Error")]
    if len(names) != 1:
        raise UserError(f"{key}: {path} has {len(names)} classes ({', '.join(names) or 'none'}); name one")
    return names[0]
