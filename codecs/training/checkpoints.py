"""The files of a stage: its checkpoint, its final weights, and the weights that it starts from."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion.backbone.weights import TABLES, read_state
from icmbench.codecs.training.objective import Objective

CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.safetensors"


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


def read_checkpoint(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Read a stage's checkpoint; None if it has none.

    Raises:
        CodecError: the checkpoint is damaged, or of another recipe.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # Unpickling damaged data can raise any error.
        raise CodecError(f"{path} is damaged: delete it, and the stage begins anew") from error
    check_same_recipe(identity, json.loads(state["recipe"]), folder)
    return state


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
    """Yield the path of a temporary file, and move that file to `path` once it is completely written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    yield temporary
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
