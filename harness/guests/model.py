"""Task models in guests, as tasks see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from icmbench.harness.config.errors import UserError
from icmbench.harness.guests.process import GuestDied
from icmbench.harness.guests.remote import GuestError, RemoteObject, Source
from icmbench.tasks.base import Image, fingerprint
from icmbench.tasks.models.errors import ModelError

WANTED = ("task", "fingerprint")


class GuestModel:
    """A task model whose object lives in a guest. What a task asks of it is asked there: methods, and attributes once each.

    Args:
        source: where its class is.
        arguments: of its constructor.
        read_facts: reads what decides its results beside its own fingerprint.

    Raises:
        UserError: it cannot be made, or breaks the contract of models.
    """

    def __init__(self, source: Source, arguments: Mapping[str, Any], read_facts: Callable[[bool], Mapping[str, Any]]) -> None:
        self._remote = RemoteObject(source, arguments, WANTED, read_facts)
        self._attributes: dict[str, Any] = {}
        members = self._remote.members
        if "__call__" not in self._remote.methods and "answer" not in self._remote.methods:
            raise UserError(f"{source.description}: cannot be called; a model has __call__(images)")
        if not members.get("task"):
            raise UserError(f"{source.description}: names no task; a model has an attribute `task`, such as 'classification'")
        self.task: str | tuple[str, ...] = members["task"]
        self.fingerprint = fingerprint(model=dict(source.place)["class"], own=members.get("fingerprint"), **self._remote.facts)

    def __call__(self, images: Sequence[Image]) -> list[Any]:
        """The output for each image, uint8 (height, width, 3), in order."""
        return list(self._call("__call__", list(images)))

    def __getattr__(self, name: str) -> Any:
        remote = self.__dict__.get("_remote")
        if remote is None or name.startswith("_") or name not in remote.names:
            raise AttributeError(name)
        if name in remote.methods:
            return lambda *arguments: self._call(name, *arguments)
        if name not in self._attributes:
            self._attributes[name] = self._translate(lambda: remote.get(name), name)
        return self._attributes[name]

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._translate(lambda: self._remote.call(method, *arguments), method)

    def _translate(self, call: Any, what: str) -> Any:
        source = self._remote.source
        try:
            return call()
        except GuestError as error:
            raise ModelError(f"{source.description}: {error}") from error
        except GuestDied as error:
            raise ModelError(f"{source.description}: its guest process ({source.environment.key}) {error}, in {what}") from error
