"""Faster repetition of one function: CUDA graphs, which replay its kernels without Python in between, and torch.compile.

A sampler evaluates the same networks dozens of times on tensors of the same shapes. One evaluation launches two thousand kernels;
for small batches, launching them one by one takes longer than running them.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Evaluate = Callable[..., Tensor]
# Graphs that are kept, one for each combination of modules and shapes; the least recently used one is dropped.
MAX_GRAPHS = 16
# Runs before the capture: libraries choose their kernels and allocate their workspaces in the first runs.
WARM_UP = 3


@functools.cache
def speed_up(evaluate: Evaluate, cuda: bool, compiled: bool) -> Evaluate:
    """Return a faster version of a function. The version is cached, so that what it compiles and captures is reused.

    Args:
        evaluate: A function of modules and tensors that returns a tensor.
        cuda: Whether its tensors are on a CUDA device; its kernels are then captured as CUDA graphs.
        compiled: Whether torch compiles it.
    """
    run = torch.compile(evaluate, dynamic=False) if compiled else evaluate
    return CudaGraphed(run) if cuda else run


class CudaGraphed:
    """A function of modules and CUDA tensors, captured as one CUDA graph for each combination of modules and tensor shapes.

    A graph is reused if the arguments that are tensors have the same shapes, strides, dtypes and devices, and all other arguments
    are the same objects. The result is a fresh tensor. If the capture fails, the function warns and runs uncaptured.

    Args:
        evaluate: The function, with positional arguments only.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._graphs: OrderedDict[tuple[Any, ...], _Captured | None] = OrderedDict()
        self._pool: Any = None  # The memory pool of all graphs; they can share one because they never run at the same time.

    def __call__(self, *arguments: Any) -> Tensor:
        key = tuple(_argument_key(argument) for argument in arguments)
        if key not in self._graphs:
            self._graphs[key] = self._capture(arguments)
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        captured = self._graphs[key]
        return self._evaluate(*arguments) if captured is None else captured.replay(arguments)

    def _capture(self, arguments: tuple[Any, ...]) -> _Captured | None:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return _Captured(self._evaluate, arguments, self._pool)
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            warnings.warn(f"no CUDA graph could be captured ({reason}): kernels are launched one by one, slower", stacklevel=2)
            return None


class _Captured:
    """One CUDA graph with the tensors it reads and writes."""

    def __init__(self, evaluate: Evaluate, arguments: tuple[Any, ...], pool: Any) -> None:
        self._inputs = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                evaluate(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = evaluate(*self._inputs)

    def replay(self, arguments: tuple[Any, ...]) -> Tensor:
        for captured_input, argument in zip(self._inputs, arguments):
            if isinstance(captured_input, Tensor):
                captured_input.copy_(argument)
        self._graph.replay()
        return self._output.clone()  # Any later replay overwrites the memory pool.


def _argument_key(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype, argument.device
    return id(argument)
