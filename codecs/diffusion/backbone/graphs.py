"""Faster repetition of one evaluation: CUDA graphs, which replay its kernels without Python between them, and torch.compile.

A step of a sampler evaluates the same networks on tensors of the same shapes, dozens of times; at small batches launching its two
thousand kernels one by one takes longer than running them.
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
MAX_GRAPHS = 16  # sets of shapes that stay captured
WARM_UP = 3  # evaluations before the capture: kernels are chosen, workspaces allocated


@functools.cache
def fast(evaluate: Evaluate, cuda: bool, compiled: bool) -> Evaluate:
    """The same function: compiled if asked, captured on CUDA. Made once, so that what it compiles and captures is kept."""
    run = torch.compile(evaluate, dynamic=False) if compiled else evaluate
    return Graphed(run) if cuda else run


class Graphed:
    """A function of modules and CUDA tensors, captured as a graph for each set of modules and shapes.

    Tensors among the arguments may change from call to call; everything else must be the same object. The result is a fresh tensor.
    Where the capture fails the function runs as it is, with a warning.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._graphs: OrderedDict[tuple[Any, ...], _Captured | None] = OrderedDict()
        self._pool: Any = None  # memory that all graphs share, as they never run at the same time

    def __call__(self, *arguments: Any) -> Tensor:
        key = tuple(_identity(argument) for argument in arguments)
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
        for held, given in zip(self._inputs, arguments):
            if isinstance(held, Tensor):
                held.copy_(given)
        self._graph.replay()
        return self._output.clone()  # the next replay, of whichever graph, overwrites it


def _identity(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return tuple(argument.shape), argument.stride(), argument.dtype, argument.device
    return id(argument)
