"""Where and how networks run so that an encoder and a decoder agree on every bit of every scale and mean.

A float32 sum depends on the order of its terms, and this order on the thread count, the batch size and the kernels that the caller
happens to use. The networks between the symbols therefore run only here: on the CPU, one image at a time, on two threads of this
module. Each convolution is always cut into the same two halves of its output channels, and one thread computes each half with
oneDNN in strict float32. The caller's thread count, autocast, default types and flags neither matter nor change.

Two runs on one machine are then bit-identical (`Float32`). Runs on different processors are not; those need `integer.FixedPoint`,
where the order of terms does not matter.
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
_MIN_SPLIT_CHANNELS = 32  # A convolution with fewer output channels is not cut in two.
_MIN_PARALLEL_COST = 5e6  # Multiply-adds of a half; one thread computes both halves below this, with the same result.


class _Threads:
    """The two threads. The conductor runs all work; the helper runs second halves. Both use single-threaded kernels."""

    def __init__(self) -> None:
        previous = torch.get_num_threads()
        self.conductor = ThreadPoolExecutor(1, "icmbench-entropy", initializer=self._prepare)
        self.helper = ThreadPoolExecutor(1, "icmbench-entropy-helper", initializer=self._prepare)
        for pool in (self.conductor, self.helper):
            pool.submit(int).result()
        torch.set_num_threads(previous)  # New threads of the caller start with the last value that any thread set.
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    @staticmethod
    def _prepare() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # Fixes the value: at its first use in a thread, the count is the last one that any thread set.
        torch.set_flush_denormal(False)


_lock = threading.Lock()
_threads: _Threads | None = None


def _forget_threads() -> None:
    global _threads, _lock
    _threads, _lock = None, threading.Lock()  # Threads do not survive a fork.


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


@contextlib.contextmanager
def _strict_kernels() -> Iterator[None]:
    """oneDNN in strict float32, without gradients; the caller's settings return afterwards."""
    backend = torch.backends.mkldnn
    settings: list[tuple[Any, str, Any]] = [(backend, "enabled", backend.is_available())]
    # Precision per operation exists since torch 2.9.
    settings += [(getattr(backend, name), "fp32_precision", "ieee") for name in ("conv", "matmul") if hasattr(backend, name)]
    previous = [(holder, name, getattr(holder, name)) for holder, name, _ in settings]
    with torch.no_grad():
        try:
            for holder, name, value in settings:
                setattr(holder, name, value)
            yield
        finally:
            for holder, name, value in previous:
                setattr(holder, name, value)


def run_exactly(work: Callable[[], T]) -> T:
    """Call a function on the conducting thread, with strict kernels and without gradients. Only one call runs at a time.

    Args:
        work: The function, without arguments. It may itself call `run_exactly`.

    Returns:
        What `work` returns. What it raises is raised here.
    """
    global _threads
    with _lock:
        if _threads is None:
            _threads = _Threads()
        threads = _threads

    def with_strict_kernels() -> T:
        with _strict_kernels():
            return work()

    if threading.current_thread().name.startswith("icmbench-entropy"):
        return work()
    return threads.conductor.submit(with_strict_kernels).result()


def run_both(first: Callable[[], T], second: Callable[[], T], parallel: bool) -> tuple[T, T]:
    """The results of two functions. Must be called from within `run_exactly`.

    Args:
        first: A function that runs on this thread.
        second: A function that may run on the helper thread.
        parallel: Whether the functions are large enough to run side by side; this also needs two cores.
    """
    threads = _threads
    if not parallel or threads is None or threads.cores < 2:
        return first(), second()

    def without_gradients() -> T:
        with torch.no_grad():
            return second()

    future = threads.helper.submit(without_gradients)
    return first(), future.result()


class HalvedConv:
    """A convolution, plain or transposed, computed as two with half the output channels each.

    The cut is the same whether one thread or two compute the halves, because a kernel may sum in another order for a layer of
    another size.

    Args:
        conv: The layer, with its weights as they are now.

    Raises:
        TypeError: the layer pads with other values than zeros, or with an amount given by name.
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(f"{conv} pads in a way that the entropy path does not take; use zeros, as numbers")
        self._conv, self._padding = conv, conv.padding
        transposed = isinstance(conv, nn.ConvTranspose2d)
        halves = 2 if conv.groups == 1 and conv.out_channels >= _MIN_SPLIT_CHANNELS else 1
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
        parallel = self._cost * x.shape[2] * x.shape[3] > _MIN_PARALLEL_COST
        return torch.cat(run_both(lambda: self._half(x, 0), lambda: self._half(x, 1), parallel), 1)


class _Winograd:
    """A large 5x5 convolution. Two halves of the inputs are transformed, then two halves of the outputs are computed."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self._weights = winograd.WinogradWeights(conv, blocks=2)
        self._cost = conv.in_channels * conv.out_channels * 2

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        parallel = self._cost * height * width > _MIN_PARALLEL_COST
        first, second = x.contiguous(memory_format=torch.channels_last).chunk(2, 1)
        tiles = list(run_both(lambda: winograd.transform_inputs(first), lambda: winograd.transform_inputs(second), parallel))
        halves = run_both(
            lambda: winograd.compute_outputs(tiles, self._weights, 0, height, width),
            lambda: winograd.compute_outputs(tiles, self._weights, 1, height, width),
            parallel,
        )
        return torch.cat(halves, 1)


class Float32:
    """The default arithmetic, which runs the networks as they are, in float32. It is bit-exact on one machine."""

    name = "default"
    dtype = torch.float32

    def prepare(self, module: nn.Module, *, trusting: bool = False) -> Net:
        """The module, with its weights as they are now, as a function of one image's map.

        The function takes and returns (1, C, H, W) float32, and must be called within `run_exactly`. All inputs are trusted.
        """
        if winograd.suits(module):
            return _Winograd(module)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return HalvedConv(module)
        if isinstance(module, nn.Sequential):
            return Chain([self.prepare(child) for child in module])
        if has_own_parameters(module) or not module._modules:
            return copy.deepcopy(module).cpu().float().eval()
        return with_prepared_children(module, self.prepare)

    def admit(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def snap(self, x: Tensor) -> Tensor:
        """x as float32."""
        return x.to(self.dtype)


class _FunctionModule(nn.Module):
    """A function as a module, so that a composite module may have it as a child."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


def has_own_parameters(module: nn.Module) -> bool:
    """Whether a module has weights that belong to none of its children."""
    return any(True for _ in module.parameters(recurse=False))


def with_prepared_children(module: nn.Module, prepare: Callable[[nn.Module], Callable[..., Tensor]]) -> nn.Module:
    """A copy of a composite module, with the same `forward` but prepared children. The original stays as it is.

    Args:
        module: A module without weights of its own.
        prepare: What prepares a child, such as `Float32.prepare`.
    """
    copied = copy.copy(module)
    prepared = {name: prepare(child) for name, child in module.named_children()}
    copied._modules = {name: net if isinstance(net, nn.Module) else _FunctionModule(net) for name, net in prepared.items()}
    copied.training = False
    return copied


class Chain:
    """Functions applied one after the other.

    Args:
        steps: The functions, in order.
    """

    def __init__(self, steps: list[Net]) -> None:
        self._steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        for step in self._steps:
            x = step(x)
        return x
