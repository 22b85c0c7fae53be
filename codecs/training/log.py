"""The log of a stage: log.jsonl, and the same values for TensorBoard where the package tensorboardX is installed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from icmbench.codecs.base import CodecError
from icmbench.codecs.training.checkpoints import replacing

LOG = "log.jsonl"
VALIDATION = "validation/"  # What precedes the names of scores, which have a line of their own.


class TermLog:
    """An open log; without a file it ignores what it is given.

    Args:
        file: log.jsonl, open for appending; None in the processes that do not log.
        board: a TensorBoard writer, or None.
    """

    def __init__(self, file: TextIO | None = None, board: Any = None) -> None:
        self._file, self._board = file, board

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step, counted from 0, as a line of JSON, and to TensorBoard.

        Raises:
            CodecError: the disk is full.
        """
        if self._file is None:
            return
        with _explaining_disk_errors(Path(self._file.name)):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def logged_steps(folder: Path) -> int:
    """Number of steps after which the log of a stage ends; with `log_every` above 1, a few more may have been taken."""
    return max((row["step"] + 1 for row, _ in _read_rows(folder / LOG)), default=0)


@contextlib.contextmanager
def open_log(folder: Path, step: int, owes_validation: bool = False) -> Iterator[TermLog]:
    """Open the log of a stage for the steps from `step` on.

    An interrupted run may have logged steps after its last checkpoint. They will be taken again, so their lines are removed first.

    Args:
        folder: the stage's folder.
        step: number of the next step.
        owes_validation: whether the validation before this step will be done again too.

    Raises:
        CodecError: the log is damaged, or the disk is full.
    """
    path = folder / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = [line for row, line in _read_rows(path) if row["step"] < step]
    if owes_validation:
        earlier = [line for line in earlier if json.loads(line)["step"] < step - 1 or VALIDATION not in line]
    with _explaining_disk_errors(path), replacing(path) as temporary:
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
                with contextlib.suppress(OSError):  # It writes what is left. A full disk is told of by the other log.
                    board.close()


@contextlib.contextmanager
def _explaining_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror}): free space there, or check the disk"
        raise CodecError(f"{reason}; the same command goes on from the last checkpoint") from error


def _read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The values and the text of each line of a log; a last line without an end was being written when the run was killed."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return
        try:
            row = json.loads(line)
            row["step"] += 0
        except (ValueError, KeyError, TypeError):
            raise CodecError(f"{path}: line {number} is damaged: delete that line") from None
        yield row, line
