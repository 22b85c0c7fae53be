"""The files of a stage: its checkpoints, its final weights, and the weights that it starts from.

checkpoint-<steps done>.pt    the last two; the earlier one serves if the later is damaged
weights.safetensors           in their place, once the stage is done
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone.weights import TABLES, read_state
from icmbench.codecs.training.objective import Objective

WEIGHTS = "weights.safetensors"
CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pt")
CHECKPOINT_FORMAT = 2  # Raised when the content of a checkpoint changes. Format 1 was one file without a number, as named below.
CHECKPOINT_OF_FORMAT_1 = "checkpoint.pt"
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """What a stage resumes from.

    Attributes:
        step: number of steps that are done; 0 if there is no checkpoint.
        state: content of the checkpoint; empty if there is none.
        damaged: what is wrong with each newer checkpoint, by its step.
    """

    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)


def is_finished(folder: Path, identity: str) -> bool:
    """Whether a stage has been trained to its end.

    Args:
        folder: the stage's folder.
        identity: JSON object of everything that decides the stage's weights.

    Raises:
        CodecError: the folder holds the weights of another recipe.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        return False
    with safe_open(path, "pt") as file:
        check_same_recipe(json.loads(identity), json.loads((file.metadata() or {}).get("recipe", "{}")), folder)
    return True


def check_same_recipe(current: dict[str, Any], recorded: dict[str, Any], folder: Path) -> None:
    """Compare what decides the weights of a stage with what its files record.

    Raises:
        CodecError: they differ; the message names the keys.
    """
    if keys := sorted(key for key in {*current, *recorded} if current.get(key) != recorded.get(key)):
        raise CodecError(f"{folder} was begun with another recipe ({', '.join(keys)} differ): choose another folder or delete it")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint that holds a stage after `step` steps."""
    return folder / f"checkpoint-{step}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of a stage's checkpoints, the newest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(match[1]) for name in names if (match := CHECKPOINT.fullmatch(name))), reverse=True)


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> Checkpoint:
    """Read the newest checkpoint of a stage that is not damaged.

    Args:
        folder: the stage's folder.
        identity: everything that decides the stage's weights.

    Raises:
        CodecError: all checkpoints are damaged, or the newest is of another recipe or another version of icmbench.
    """
    if (folder / CHECKPOINT_OF_FORMAT_1).is_file():
        raise CodecError(
            f"{folder / CHECKPOINT_OF_FORMAT_1} was written by an earlier icmbench, whose `batch` counted for each process: finish "
            "the stage with that one, or delete the file, and the stage begins anew"
        )
    damaged: dict[int, str] = {}
    for step in checkpoint_steps(folder):
        state, problem = _read_whole(checkpoint_path(folder, step), step)
        if problem:
            damaged[step] = problem
            continue
        check_same_recipe(identity, json.loads(state["recipe"]), folder)
        return Checkpoint(step, state, damaged)
    if damaged:
        problems = "; ".join(f"checkpoint-{step}.pt: {problem}" for step, problem in damaged.items())
        raise CodecError(f"{folder}: every checkpoint is damaged ({problems}): delete them, and the stage begins anew")
    return Checkpoint()


def _read_whole(path: Path, step: int) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint, and what is wrong with it; one of the two is empty.

    Raises:
        CodecError: another version of icmbench wrote it.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                if bad := archive.testzip():  # PyTorch itself does not compare the checksums.
                    return {}, f"the checksum of {bad} in it is wrong"
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
            if state["format"] == CHECKPOINT_FORMAT and state["step"] != step:
                return {}, f"it holds step {state['step']}"
        except MemoryError:
            raise
        except Exception as error:  # Unpickling damaged data can raise any error.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return {}, f"it is no whole checkpoint: {reason}"
    if state["format"] != CHECKPOINT_FORMAT:
        raise CodecError(
            f"{path} has format {state['format']}, and this icmbench reads {CHECKPOINT_FORMAT}: finish the stage with the icmbench "
            "that began it, or delete the stage's folder"
        )
    return state, ""


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the checkpoint after `step` steps whole or not at all, then remove all but the last two.

    Args:
        folder: the stage's folder.
        step: number of steps that are done.
        state: what the checkpoint holds beside its format and its step.

    Raises:
        OSError: the disk is full, or cannot be written for another reason; earlier checkpoints are as before.
    """
    with replacing(checkpoint_path(folder, step)) as temporary, temporary.open("wb") as file:
        try:
            torch.save({"format": CHECKPOINT_FORMAT, "step": step, **state}, file)
        except RuntimeError as error:  # PyTorch's own, after the file's.
            raise _disk_error(error) or error from None
    steps = checkpoint_steps(folder)
    kept = [done for done in steps if done <= step][:KEPT_CHECKPOINTS]  # Later ones are damaged, else this run had begun there.
    _remove([checkpoint_path(folder, done) for done in steps if done not in kept])


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished stage no longer needs."""
    _remove([checkpoint_path(folder, step) for step in checkpoint_steps(folder)])
    remove_unfinished_files(folder)


def remove_unfinished_files(folder: Path) -> None:
    """Remove what a process that was killed had not written to its end."""
    _remove(folder.glob("*.tmp"))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _disk_error(error: BaseException) -> OSError | None:
    """The error of the disk that led to another error, if there was one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return cause


def load_start_weights(objective: Objective, path: Path) -> None:
    """Load the weights that a stage starts from; networks that are not among them keep their initial weights.

    Args:
        objective: the objective to fill.
        path: `weights.safetensors` of an earlier stage, or a folder of files that the objective's codec loads.

    Raises:
        CodecError: a tensor is missing, unknown or of another shape, or the folder lacks the file of the objective's rate point.
    """
    expected, state = (
        {key: value for key, value in tensors.items() if not key.endswith(TABLES)}  # Each export makes the tables anew.
        for tensors in (objective.state_dict(), _read_start_weights(objective, path))
    )
    parts = {key.partition(".")[0] for key in state}
    problems = [key for key in expected if key.partition(".")[0] in parts and key not in state]
    problems += [key for key, value in state.items() if key not in expected or expected[key].shape != value.shape]
    if problems:
        raise CodecError(f"{path} does not fit this stage ({len(problems)} tensors differ, such as {min(problems)})")
    objective.load_state_dict(state, strict=False)


def _read_start_weights(objective: Objective, path: Path) -> dict[str, Tensor]:
    """The tensors of a file; or, from a folder, those of the objective's rate point and those that all points share."""
    files, prefix = [path], ""
    if path.is_dir():
        if objective.codec is None:
            raise CodecError(f"start: {path} is a folder, and this objective trains no codec: name a stage's {WEIGHTS}")
        prefix = objective.prefix
        files = [path / f"{objective.codec}-{name}.safetensors" for name in (f"lambda{objective.point:g}", "shared")]
        if not files[0].is_file():
            raise CodecError(f"start: {path} has no {files[0].name}: name a folder that this point was exported to")
    return {prefix + key: value for file in files if file.is_file() for key, value in read_state(file).items()}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, and move that file to `path` once it is completely written and on the disk.

    If it cannot be written, it is removed, and what stood at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Not every file system lets a folder be synchronised.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
