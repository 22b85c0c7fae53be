"""Calling a codec or a model on a batch: out of memory halves it, and one bad image need not spoil the others."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from icmbench.codecs.base import CodecError

T = TypeVar("T")


def attempt(call: Callable[[Sequence[int]], Sequence[T]], indices: Sequence[int], tolerant: bool) -> dict[int, T | Exception]:
    """The results of `call(indices)` by index.

    Out of memory: the batch is halved and tried again. Any other error: raised, or, where `tolerant`, narrowed down by halves
    to the images that cause it, whose place takes the exception.
    """
    try:
        try:
            results = call(indices)
        except SystemExit as error:  # a library's wish to end must not end the run, as if all were well
            raise CodecError(f"wanted to end the process (sys.exit, {error.code!r})") from error
        if len(results) != len(indices):
            raise CodecError(f"gave {len(results)} results for {len(indices)} images")
        return dict(zip(indices, results, strict=True))
    except Exception as error:
        exhausted = out_of_memory(error)
        if len(indices) == 1 and tolerant and not exhausted:
            return {indices[0]: error}
        if len(indices) == 1 or not (tolerant or exhausted):
            raise
    if exhausted:
        free_memory()
    half = len(indices) // 2
    return attempt(call, indices[:half], tolerant) | attempt(call, indices[half:], tolerant)


def out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch may help; torch and onnxruntime each say it in their own way."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


def free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """One sentence for errors that speak for themselves; the place in the code too for all others."""
    if type(error).__module__.startswith("icmbench."):
        return str(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
