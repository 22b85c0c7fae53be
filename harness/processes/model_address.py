"""How processes of one run find each other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

READY_MESSAGE = "ready"  # The first message of a process that was started; all later ones are results.
BEGUN_MESSAGE = b"begun"  # A model process says that it begins with a request; one that only waited is not to blame when it dies.


class Address(NamedTuple):
    """Where a model process is reached.

    Attributes:
        socket: path of its socket.
        queue: a file of eight bytes that says how many requests wait there.
    """

    socket: str
    queue: str

    @classmethod
    def of(cls, folder: Path, index: int) -> Address:
        """Address of the process of a number, in the folder of the run's pixels."""
        return cls(str(folder / f"socket-{index}"), str(folder / f"queue-{index}"))
