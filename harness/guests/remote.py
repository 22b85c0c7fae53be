"""Classes and objects that live in a guest: asked from here, and made again in the next process where one has died."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icmbench.codecs.base import BitstreamError, CodecError
from icmbench.harness.config.errors import UserError
from icmbench.harness.guests.environment import Environment
from icmbench.harness.guests.process import GuestDied, GuestProcess, call_with_retry

MAKE_SECONDS = 1800.0  # Networks may load from a slow disk.
NO_LIMIT = 1e9  # Seconds; a run's own time limit ends the worker with its guests.


class GuestError(RuntimeError):
    """The guest's code raised an error. The text has its class, its text and the line that raised it."""


@dataclass(frozen=True)
class Source:
    """Where a guest finds a class.

    Attributes:
        environment: the interpreter.
        place: `file` and `class` of an adapter, or `module` and `class` of a built-in one.
        description: what messages call it.
    """

    environment: Environment
    place: tuple[tuple[str, str], ...]
    description: str

    def describe(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Parameters, description and wanted attributes of the class.

        Raises:
            UserError: it cannot be loaded there.
        """
        request = {"do": "describe", "source": dict(self.place), "wanted": list(wanted)}
        return dict(self.ask(lambda process: unpack(process.ask(request, MAKE_SECONDS), self.description), "loaded"))

    def ask(self, call: Callable[[GuestProcess], Any], action: str) -> Any:
        """What the guest answers to a call, before there is an object whose images could fail.

        Args:
            call: asks a running process.
            action: what is done with the class, for messages.

        Raises:
            UserError: the guest dies or raises an error.
        """
        key = self.environment.key
        try:
            return call_with_retry(self.environment, call)
        except GuestDied as error:
            raise UserError(f"{self.description}: its guest process ({key}) {error}") from error
        except (GuestError, BitstreamError, MemoryError) as error:
            raise UserError(f"{self.description}: cannot be {action} in {key}: {error}") from error


class RemoteObject:
    """An object in a guest.

    Args:
        source: its class.
        arguments: of its constructor.
        wanted: attributes that are read when it is made.
        read_facts: reads what decides its results: versions, checkouts, files. Its argument says whether to read them anew, or to
            take over what other objects of the environment were told.

    Attributes:
        facts: what decided its results when it was made first.
        members: the wanted attributes that it has.
        names: names of all its public attributes.
        methods: names of its methods.

    Raises:
        UserError: it cannot be made.
    """

    def __init__(
        self, source: Source, arguments: Mapping[str, Any], wanted: Sequence[str], read_facts: Callable[[bool], Mapping[str, Any]]
    ) -> None:
        self._read_facts, self.facts = read_facts, dict(read_facts(False))
        self.source, self._arguments, self._wanted = source, dict(arguments), list(wanted)
        self._process: GuestProcess | None = None
        self._number = -1
        made = source.ask(self._make, "made")
        self.members: dict[str, Any] = made["members"]
        self.names, self.methods = frozenset(made["names"]), frozenset(made["methods"])

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method.

        Raises:
            BitstreamError: the guest raised an error of that name.
            GuestError, MemoryError: the guest raised another error.
            GuestDied: the guest died over it again and again.
        """
        return self._ask({"do": "call", "method": method, "arguments": list(arguments)}, NO_LIMIT)

    def map(self, method: str, items: Sequence[Any]) -> list[Any]:
        """Results of a method that is called with each item. Raises as `call`."""
        return list(self._ask({"do": "map", "method": method, "items": list(items)}, NO_LIMIT))

    def get(self, name: str) -> Any:
        """An attribute. Raises as `call`."""
        return self._ask({"do": "get", "name": name}, MAKE_SECONDS)

    def _ask(self, request: Mapping[str, Any], seconds: float) -> Any:
        def ask(process: GuestProcess) -> Any:
            if process is not self._process:
                self._check_unchanged(self._make(process))
            return unpack(process.ask({**request, "number": self._number}, seconds), self.source.description)

        return call_with_retry(self.source.environment, ask)

    def _make(self, process: GuestProcess) -> dict[str, Any]:
        request = {"do": "make", "source": dict(self.source.place), "arguments": self._arguments, "wanted": self._wanted}
        made: dict[str, Any] = unpack(process.ask(request, MAKE_SECONDS), self.source.description)
        self._process, self._number = process, made["number"]
        return made

    def _check_unchanged(self, made: Mapping[str, Any]) -> None:
        """Refuse an object that differs from the one whose fingerprint stands in keys: its files were changed meanwhile.

        Raises:
            CodecError: what it states of itself, or what of its environment and files decides its results, is not what it was.
        """
        now = self._read_facts(True)
        moved = sorted(name for name in {*now, *self.facts} if now.get(name) != self.facts.get(name))
        if moved:
            raise CodecError(
                f"{self.source.description}: its guest process died, and what it would load now is something else "
                f"({', '.join(moved)} changed since the run began): start the run again"
            )
        if made["members"] != self.members:
            names = {*made["members"], *self.members}
            changed = sorted(name for name in names if made["members"].get(name) != self.members.get(name))
            raise CodecError(
                f"{self.source.description}: was made again after its guest process had died, and is another one now "
                f"({', '.join(changed)} changed): start the run again"
            )


def unpack(answer: Mapping[str, Any], description: str) -> Any:
    """The result in an answer of a guest.

    Raises:
        BitstreamError, MemoryError, GuestError: the error in it.
    """
    if "error" not in answer:
        return answer["result"]
    error = answer["error"]
    classes, text = error["classes"], error["text"]
    place = f" ({error['place']})" if error["place"] else ""
    if "BitstreamError" in classes:
        raise BitstreamError(text)
    if "MemoryError" in classes or "OutOfMemoryError" in classes or "out of memory" in text.lower():
        raise MemoryError(f"{description}: {text}")
    if "CodecError" in classes or "ModelError" in classes:
        raise GuestError(text)
    hint = f"; install {error['module']} there" if "ModuleNotFoundError" in classes and error["module"] else ""
    raise GuestError(f"{classes[0]}: {text}{hint}{place}")
