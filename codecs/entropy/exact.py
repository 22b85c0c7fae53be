"""Where and how networks run so that an encoder and a decoder agree on every bit of every scale and mean.

A float32 sum depends on its order, and the order on the thread count, the batch size and the kernels that the caller happened
to choose. So the networks between the symbols run here and nowhere else: on the CPU, one image at a time, on two threads that
belong to this module, each convolution cut into the same two halves by output channel, each half on one thread with oneDNN in
strict float32. The caller's thread count, autocast, default types and flags neither matter nor change. Two runs on one machine are
then bit-identical (`Float32`). Runs on different processors are not: those need `integer.FixedPoint`, where no order matters.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icmbench.codecs.entropy import winograd

Net = Callable[[Tensor], Tensor]
T = TypeVar("T")
_SPLIT = 32  # output channels from which a convolution is cut in two
_WORTH_A_THREAD = 5e6  # multiply-adds of a half; less is done by one thread, to the same result


class _Threads:
    """One thread that conducts and one that helps, both set to single-threaded kernels once."""

    def __init__(self) -> None:
        before = torch.get_num_threads()
        self.conductor = ThreadPoolExecutor(1, "icmbench-entropy", initializer=self._prepare)
        self.helper = ThreadPoolExecutor(1, "icmbench-entropy-helper", initializer=self._prepare)
        for pool in (self.conductor, self.helper):
            pool.submit(int).result()
        torch.set_num_threads(before)  # new threads of the caller start from the last value set anywhere
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @staticmethod
    def _prepare() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # makes it stick: a thread's first use of the count takes the last value set anywhere
        torch.set_flush_denormal(False)


_lock = threading.Lock()
_threads: _Threads | None = None


def _forget_threads() -> None:
    global _threads, _lock
    _threads, _lock = None, threading.Lock()  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@contextlib.contextmanager
def _strict_kernels() -> Iterator[None]:
    backend = torch.backends.mkldnn
    wanted: list[tuple[Any, str, Any]] = [(backend, "enabled", backend.is_available())]
    wanted += [(getattr(backend, name), "fp32_precision", "ieee") for name in ("conv", "matmul") if hasattr(backend, name)]
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in wanted]  # per-operation precision: since torch 2.9
    with torch.no_grad():
        try:
            for holder, name, value in wanted:
                setattr(holder, name, value)
            yield
        finally:
            for holder, name, value in before:
                setattr(holder, name, value)


def run(work: Callable[[], T]) -> T:
    """Calls work() on the conducting thread, without gradients, and returns or raises what it does. One at a time a process."""
    global _threads
    with _lock:
        if _threads is None:
            _threads = _Threads()
        threads = _threads

    def conducted() -> T:
        with _strict_kernels():
            return work()

    if threading.current_thread().name.startswith("icmbench-entropy"):
        return work()
    return threads.conductor.submit(conducted).result()


def both(first: Callable[[], T], second: Callable[[], T], worth: bool) -> tuple[T, T]:
    """Both results; on two threads if that is worth it and there are two cores. To be called from within `run`."""
    threads = _threads
    if not worth or threads is None or threads.cores < 2:
        return first(), second()

    def helped() -> T:
        with torch.no_grad():
            return second()

    future = threads.helper.submit(helped)
    return first(), future.result()


class HalvedConv:
    """A convolution, plain or transposed, as two with half the output channels each: the cut is part of the arithmetic."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(f"{conv} pads in a way that the entropy path does not take; use zeros, as numbers")
        self._conv, self._padding = conv, conv.padding
        transposed = isinstance(conv, nn.ConvTranspose2d)
        halves = 2 if conv.groups == 1 and conv.out_channels >= _SPLIT else 1
        weights = conv.weight.detach().chunk(halves, 1 if transposed else 0)
        self._weights = [w.contiguous(memory_format=torch.channels_last) for w in weights]
        bias = conv.bias
        self._biases = [None] * halves if bias is None else [b.contiguous() for b in bias.detach().chunk(halves)]
        self._cost = conv.weight[0, 0].numel() * conv.in_channels * conv.out_channels / conv.groups / halves

    def _half(self, x: Tensor, index: int) -> Tensor:
        conv, weight, bias = self._conv, self._weights[index], self._biases[index]
        if isinstance(conv, nn.ConvTranspose2d):
            return F.conv_transpose2d(x, weight, bias, conv.stride, self._padding, conv.output_padding, conv.groups, conv.dilation)
        return F.conv2d(x, weight, bias, conv.stride, self._padding, conv.dilation, conv.groups)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if len(self._weights) == 1:
            return self._half(x, 0)
        worth = self._cost * x.shape[2] * x.shape[3] > _WORTH_A_THREAD
        return torch.cat(both(lambda: self._half(x, 0), lambda: self._half(x, 1), worth), 1)


class _Winograd:
    """A large 5x5 convolution: two halves of the inputs are transformed, then two halves of the outputs are computed."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._weights = winograd.WinogradWeights(conv, parts=2)
        self._worth = conv.in_channels * conv.out_channels * 2

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        worth = self._worth * height * width > _WORTH_A_THREAD
        first, second = x.contiguous(memory_format=torch.channels_last).chunk(2, 1)
        parts = list(both(lambda: winograd.transform(first), lambda: winograd.transform(second), worth))
        halves = both(
            lambda: winograd.multiply(parts, self._weights, 0, height, width),
            lambda: winograd.multiply(parts, self._weights, 1, height, width),
            worth,
        )
        return torch.cat(halves, 1)


class Float32:
    """The default arithmetic: the networks as they are, in float32. Bit-exact on one machine."""

    name = "default"
    dtype = torch.float32

    def prepare(self, module: nn.Module) -> Net:
        """The module as a function of one image's map (1, C, H, W), to be called within `run`, with the weights as they are now."""
        if winograd.suits(module):
            return _Winograd(module)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return HalvedConv(module)
        if isinstance(module, nn.Sequential):
            return Chain([self.prepare(child) for child in module])
        if has_own_parameters(module) or not module._modules:
            return copy.deepcopy(module).cpu().float().eval()
        return rebuilt(module, self.prepare)

    def snap(self, x: Tensor) -> Tensor:
        """x among the values of this arithmetic."""
        return x.to(self.dtype)


class _Called(nn.Module):
    """A function where a module stood, so that a composite's own `forward` finds it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


def has_own_parameters(module: nn.Module) -> bool:
    """Whether a module computes with weights that belong to none of its children."""
    return any(True for _ in module.parameters(recurse=False))


def rebuilt(module: nn.Module, prepare: Callable[[nn.Module], Callable[..., Tensor]]) -> nn.Module:
    """A composite whose children are prepared, with its own `forward` as it was. The original keeps its children."""
    copied = copy.copy(module)
    prepared = {name: prepare(child) for name, child in module.named_children()}
    copied._modules = {name: net if isinstance(net, nn.Module) else _Called(net) for name, net in prepared.items()}
    copied.training = False
    return copied


class Chain:
    """Functions applied one after the other."""

    def __init__(self, steps: list[Net]) -> None:
        self._steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        for step in self._steps:
            x = step(x)
        return x
