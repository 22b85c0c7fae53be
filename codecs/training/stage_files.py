"""What the training of a stage leaves on the disk: checkpoints, the codec that is validated, and the final weights.

In runs of several processes, only the main one writes; all hear what went wrong there, so that none waits for another in vain.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file

from icmbench.codecs.base import CodecError
from icmbench.codecs.training.checkpoints import (
    WEIGHTS,
    Checkpoint,
    checkpoint_path,
    read_checkpoint,
    remove_checkpoints,
    remove_unfinished_files,
    replacing,
    write_checkpoint,
)
from icmbench.codecs.training.stopping import StopRequest
from icmbench.codecs.training.trainer import StageTrainer, agree

Validate = Callable[[Path], Mapping[str, float]]  # Scores the codec whose files are in a folder.


class StageFiles:
    """Writes the files of a stage, and resumes from them.

    Args:
        trainer: what is trained.
        folder: the stage's folder.
        identity: everything that decides the weights.
        stop: whether this process was asked to stop.

    Attributes:
        saved: step of the newest good checkpoint; 0 if there is none.
        owes_validation: whether the validation after the step that was taken last is still to be done.
    """

    def __init__(self, trainer: StageTrainer, folder: Path, identity: dict[str, Any], stop: StopRequest) -> None:
        self.trainer, self.folder, self.identity, self.stop = trainer, folder, identity, stop
        self.stage, self.accelerator = trainer.stage, trainer.accelerator
        self.saved, self.owes_validation = 0, False
        self._saved_at = time.monotonic()

    @property
    def kept(self) -> str:
        """What is left of the training if it ends now, as a part of a sentence."""
        return f"the checkpoint of step {self.saved} is kept" if self.saved else "there is no checkpoint yet"

    def wishes(self) -> list[bool]:
        """Whether this process wants all to stop, and whether it wants all to write a checkpoint because of the time."""
        minutes = (time.monotonic() - self._saved_at) / 60
        over = 0 < self.stage.checkpoint_minutes <= minutes
        return [self.stop.requested, over and self.accelerator.is_main_process]

    def save(self, done: int) -> None:
        """Write the checkpoint after `done` steps. Whatever goes wrong meanwhile, the earlier ones stay.

        Raises:
            CodecError: the weights are not finite, or the disk is full.
        """
        problem = ""
        if self.accelerator.is_main_process:
            problem = self.trainer.non_finite_weights() or self._write(done)
        if agree(self.accelerator, bool(problem)):
            raise CodecError(
                f"{checkpoint_path(self.folder, done)}: the checkpoint of step {done} is not written, and training stopped "
                f"({problem or 'the main process says why'}); {self.kept}, and the same command goes on from there"
            )
        self.saved, self._saved_at = done, time.monotonic()

    def _write(self, done: int) -> str:
        """Write a checkpoint; returns why it could not be written, or nothing."""
        facts = {
            "recipe": json.dumps(self.identity),
            "processes": self.accelerator.num_processes,
            "owes_validation": self.owes_validation,
        }
        with _noting_disk_errors() as problems:
            write_checkpoint(self.folder, done, {**facts, **self.trainer.state()})
        return "".join(problems)

    def resume(self) -> Checkpoint:
        """Restore the newest good checkpoint, if there is one, and return it.

        Raises:
            CodecError: all checkpoints are damaged, they are of another recipe, or the processes do not see the same ones.
        """
        found = read_checkpoint(self.folder, self.identity)
        check_equal(self.accelerator, found.step, self.folder)
        if self.accelerator.is_main_process:
            remove_unfinished_files(self.folder)
        if found.step:
            self.trainer.restore(found.state)
            self.saved, self.owes_validation = found.step, found.state["owes_validation"]
        return found

    def validate(self, validate: Validate) -> Mapping[str, float] | None:
        """Export the averaged weights and score them.

        Returns:
            The scores, empty in all processes but the main one; None if the user stopped the validation.
        """
        scores: Mapping[str, float] = {}
        stopped = False
        if self.accelerator.is_main_process:
            with self.trainer.averaged():
                self._export(self.folder / "validation")
                try:
                    with self.stop.interruptible():
                        scores = validate(self.folder / "validation")
                except KeyboardInterrupt:
                    stopped = True
        self.owes_validation = agree(self.accelerator, stopped)
        return None if self.owes_validation else scores

    def finish(self, export: Path | None) -> None:
        """Write the codec's files, then weights.safetensors, whose presence marks the stage as finished.

        Raises:
            CodecError: the weights are not finite, or the disk is full.
        """
        if self.accelerator.is_main_process:
            if problem := self.trainer.non_finite_weights():
                raise self._unwritten(problem)
            objective = self.trainer.objective
            with self.trainer.averaged():
                if export is not None:
                    self._export(export)
                state = {key: value.detach().cpu().contiguous() for key, value in objective.state_dict().items()}
            with _noting_disk_errors() as problems, replacing(self.folder / WEIGHTS) as temporary:
                save_file(state, temporary, {"recipe": json.dumps(self.identity)})
            if problems:
                raise self._unwritten(problems[0])
            remove_checkpoints(self.folder)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()

    def _export(self, folder: Path) -> None:
        with _noting_disk_errors() as problems:
            folder.mkdir(parents=True, exist_ok=True)
            self.trainer.objective.export(folder)
        if problems:
            raise self._unwritten(problems[0])

    def _unwritten(self, problem: str) -> CodecError:
        return CodecError(
            f"{self.folder}: the weights are not written ({problem}); {self.kept}, and the same command goes on from there"
        )


def check_equal(accelerator: Accelerator, number: int, folder: Path) -> None:
    """Compare a number that follows from the files in a folder among all processes.

    Raises:
        CodecError: the processes do not see the same files.
    """
    numbers: Any = accelerator.gather(torch.tensor([number], device=accelerator.device))
    if len({*numbers.tolist()}) > 1:
        raise CodecError(f"{folder}: the processes do not see the same files there: put it on a disk that all of them share")


@contextlib.contextmanager
def _noting_disk_errors() -> Iterator[list[str]]:
    """Yield a list that gets the reason why a file could not be written, if that happens."""
    problems: list[str] = []
    try:
        yield problems
    except OSError as error:
        problems.append(f"{error.strerror or error}: free space there, or check the disk")
    except SafetensorError as error:  # What safetensors makes of an OSError.
        problems.append(f"{error}: free space there, or check the disk")
