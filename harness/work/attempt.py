"""Calls a codec or a task model on a batch: a batch that does not fit into memory is halved, and bad images are singled out."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from icmbench.codecs.base import CodecError
from icmbench.harness.config.secrets import redact

T = TypeVar("T")


class ModelError(RuntimeError):
    """A task model broke its contract: it ended the process, or did not return one result per image."""


_ERRORS = {"codec": CodecError, "model": ModelError}


def attempt(
    call: Callable[[Sequence[int]], Sequence[T]], indices: Sequence[int], tolerant: bool, callee: Literal["codec", "model"]
) -> dict[int, T | Exception]:
    """Results of `call(indices)` by index, obtained in smaller batches where the whole one fails.

    A batch that runs out of memory is halved and tried again, down to single images. With `tolerant`, a batch that fails for
    another reason is halved too, until the images that cause the failure are singled out.

    Args:
        call: returns one result per index, in order.
        indices: positions of the images in the caller's list; at least one.
        tolerant: whether an image that fails is reported beside the results of the others.
        callee: what `call` runs; decides the type of the errors below.

    Returns:
        For each index its result or, if `tolerant`, the exception that its image raises.

    Raises:
        CodecError, ModelError: the codec or the model wanted to end the process or returned another number of results.
        Exception: whatever `call` raised, if not `tolerant`, or if a single image does not fit into memory.
    """
    try:
        try:
            results = call(indices)
        except SystemExit as error:  # A library that calls sys.exit(0) would end the run with the exit code of a success.
            raise _ERRORS[callee](f"the {callee} wanted to end the process (sys.exit, {error.code!r})") from error
        if len(results) != len(indices):
            raise _ERRORS[callee](f"the {callee} gave {len(results)} results for {len(indices)} images")
        return dict(zip(indices, results, strict=True))
    except Exception as error:
        memory_ran_out = is_out_of_memory(error)
        if len(indices) == 1 and tolerant and not memory_ran_out:
            return {indices[0]: error}
        if len(indices) == 1 or not (tolerant or memory_ran_out):
            raise
    if memory_ran_out:
        free_memory()
    half = len(indices) // 2
    return attempt(call, indices[:half], tolerant, callee) | attempt(call, indices[half:], tolerant, callee)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help. Torch and onnxruntime have no common type for such errors."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


def free_memory() -> None:
    """Collect garbage and, if torch is loaded, empty its cache of GPU memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """One sentence about an error.

    Errors of icmbench explain themselves; all others are given with their type and the file and line that raised them.
    """
    if type(error).__module__.startswith("icmbench."):
        return redact(str(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return redact(" ".join(f"{type(error).__name__}: {error}{where}".split()))
