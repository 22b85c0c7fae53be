"""Networks are bit-exact whatever the caller's threads and flags, also in fresh processes, and change none of these."""

import os
import subprocess
import sys
import threading

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from icmbench.codecs.entropy import exact, winograd  # noqa: E402
from icmbench.codecs.entropy.exact import Float32, HalvedConv  # noqa: E402

FRESH_PROCESS = """
import sys, zlib, torch
from torch import nn
from icmbench.codecs.entropy import exact
torch.manual_seed(3)
net = nn.Sequential(
    nn.ConvTranspose2d(40, 96, 5, 2, 2, 1), nn.GELU(), nn.Conv2d(96, 80, 5, padding=2), nn.ReLU(), nn.Conv2d(80, 64, 1), nn.SiLU()
)
x = torch.randn(1, 40, 18, 22)
prepared = exact.Float32().prepare(net)
print(zlib.crc32(exact.run_exactly(lambda: prepared(x)).contiguous().numpy().tobytes()))
"""


def make_network():
    torch.manual_seed(3)
    up = nn.ConvTranspose2d(40, 96, 5, 2, 2, 1)
    return nn.Sequential(up, nn.GELU(), nn.Conv2d(96, 80, 5, padding=2), nn.ReLU(), nn.Conv2d(80, 64, 1)).eval()


def in_a_fresh_process(**environment):
    command, variables = [sys.executable, "-c", FRESH_PROCESS], {**os.environ, **environment}
    process = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return int(process.stdout)


def test_fresh_processes_agree_at_any_thread_count():
    assert len({in_a_fresh_process(OMP_NUM_THREADS=n) for n in ("1", "2", "5")}) == 1


def test_nothing_that_the_caller_set_matters_or_changes():
    prepared, x = Float32().prepare(make_network()), torch.randn(1, 40, 18, 22)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    expected = exact.run_exactly(lambda: prepared(x))
    try:
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            torch.set_float32_matmul_precision("medium")
            torch.set_flush_denormal(True)
            torch.set_default_dtype(torch.float64)
            torch.backends.mkldnn.enabled = False
            with torch.autocast("cpu", torch.bfloat16):
                got = exact.run_exactly(lambda: prepared(x))
                assert torch.is_autocast_enabled("cpu") and not torch.backends.mkldnn.enabled
            assert torch.equal(got, expected)
            assert torch.get_num_threads() == count
            assert torch.get_float32_matmul_precision() == "medium"
            in_new_thread = []
            fresh = threading.Thread(target=lambda seen=in_new_thread: seen.append(torch.get_num_threads()))
            fresh.start()
            fresh.join()
            assert in_new_thread == [count]
    finally:
        torch.backends.mkldnn.enabled = True
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_flush_denormal(False)
        torch.set_default_dtype(torch.float32)


def test_one_thread_computes_what_two_do(monkeypatch):
    prepared, x = Float32().prepare(make_network()), torch.randn(1, 40, 18, 22)
    results = []
    for cores in (1, 2):
        exact.run_exactly(int)
        monkeypatch.setattr(exact._threads, "cores", cores)
        results.append(exact.run_exactly(lambda: prepared(x)))
    assert torch.equal(*results)


def test_callers_on_many_threads_do_not_disturb_each_other():
    prepared = Float32().prepare(make_network())
    inputs = [torch.randn(1, 40, 10, 12 + i) for i in range(6)]
    expected = [exact.run_exactly(lambda x=x: prepared(x)) for x in inputs]
    results = [None] * len(inputs)

    def call(i):
        torch.set_num_threads(1 + i % 3)
        results[i] = exact.run_exactly(lambda: prepared(inputs[i]))

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_it_computes_what_the_network_computes():
    net, x = make_network(), torch.randn(1, 40, 18, 22)
    prepared = Float32().prepare(net)
    with torch.no_grad():
        torch.testing.assert_close(exact.run_exactly(lambda: prepared(x)), net(x), atol=1e-4, rtol=1e-4)


def test_errors_reach_the_caller_and_the_next_call_works():
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        exact.run_exactly(fail)
    assert exact.run_exactly(lambda: exact.run_exactly(lambda: 5)) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_threads_of_its_own():
    exact.run_exactly(int)
    child = os.fork()
    if child == 0:
        os._exit(0 if exact.run_exactly(lambda: 7) == 7 else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("shape", [(64, 48, 32, 48), (50, 61, 5, 7), (60, 50, 1, 1), (200, 16, 9, 4), (17, 190, 4, 9)])
def test_winograd_equals_the_direct_convolution(shape):
    inputs, outputs, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 5, padding=2)
    assert winograd.suits(conv)
    x = torch.randn(1, inputs, height, width)
    prepared = Float32().prepare(conv)
    with torch.no_grad():
        expected = conv.double()(x.double())
    assert (exact.run_exactly(lambda: prepared(x)) - expected).abs().max() < 2e-4


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(64, 64, 5, padding=2, stride=2),
        nn.Conv2d(64, 64, 5, padding=2, groups=2),
        nn.Conv2d(64, 64, 5, padding=2, padding_mode="reflect"),
        nn.ConvTranspose2d(64, 64, 5, padding=2),
        nn.Conv2d(8, 8, 5, padding=2),
    ],
)
def test_winograd_leaves_other_layers_alone(conv):
    assert not winograd.suits(conv)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(40, 70, 3, padding=1, bias=False),
        nn.Conv2d(40, 33, 5, padding=2, stride=2, dilation=2),
        nn.Conv2d(40, 40, 3, padding=1, groups=40),
        nn.ConvTranspose2d(40, 70, 5, 2, 2, 1),
        nn.ConvTranspose2d(40, 31, 3, 1, 1),
    ],
)
def test_halved_convolutions_equal_whole_ones(conv):
    x = torch.randn(1, 40, 9, 13)
    halved = HalvedConv(conv)
    with torch.no_grad():
        torch.testing.assert_close(exact.run_exactly(lambda: halved(x)), conv(x), atol=1e-5, rtol=1e-5)


def test_padding_that_is_not_zeros_is_refused():
    with pytest.raises(TypeError, match="pads"):
        HalvedConv(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"))


class _Residual(nn.Module):
    """A composite module with its own forward and a list of children, but no weights of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)])
        self.act = nn.GELU()

    def forward(self, x):
        for layer in self.layers:
            x = x + self.act(layer(x))
        return x


def test_composites_run_their_own_forward_and_stay_as_they_were():
    net, x = _Residual().train(), torch.randn(1, 8, 5, 6)
    prepared = Float32().prepare(net)
    with torch.no_grad():
        torch.testing.assert_close(exact.run_exactly(lambda: prepared(x)), net(x), atol=1e-5, rtol=1e-5)
    assert isinstance(net.layers[0], nn.Conv2d) and net.training
