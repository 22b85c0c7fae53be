"""The log of a stage: log.jsonl, and the same values for TensorBoard where the package tensorboardX is installed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from icmbench.codecs.training.checkpoints import replacing

LOG = "log.jsonl"


class TermLog:
    """An open log; without a file it ignores what it is given.

    Args:
        file: log.jsonl, open for appending; None in the processes that do not log.
        board: a TensorBoard writer, or None.
    """

    def __init__(self, file: TextIO | None = None, board: Any = None) -> None:
        self._file, self._board = file, board

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step as a line of JSON, and to TensorBoard."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


@contextlib.contextmanager
def open_log(folder: Path, step: int) -> Iterator[TermLog]:
    """Open the log of a stage for the steps from `step` on.

    An interrupted run may have logged steps after its last checkpoint. They will be taken again, so their lines are removed first.
    """
    path = folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    earlier = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < step]
    with replacing(path) as temporary:
        temporary.write_text("".join(earlier))
    board = None
    if find_spec("tensorboardX"):
        from tensorboardX import SummaryWriter

        board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
    with path.open("a") as file:
        try:
            yield TermLog(file, board)
        finally:
            if board is not None:
                board.close()
