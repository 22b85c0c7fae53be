"""Networks on the grid are exact in any order, close to the float networks, and never silently off the grid."""

import copy
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from icmbench.codecs.base import CodecError  # noqa: E402
from icmbench.codecs.entropy import exact  # noqa: E402
from icmbench.codecs.entropy.integer import GRID, FixedPoint, Product, to_grid  # noqa: E402

# CRC-32 of each table's integers, which changes if an elementary function rounds differently on some machine.
TABLES = {nn.GELU: 683866690, nn.SiLU: 324274977, nn.Sigmoid: 2998351602, nn.Tanh: 3324123047}


def on_grid(x):
    return x.dtype == torch.float64 and torch.equal(x * 2**GRID, (x * 2**GRID).round())


def run(net, x):
    prepared = FixedPoint().prepare(net)
    return exact.run_exactly(lambda: prepared(to_grid(x)))


@pytest.mark.parametrize(
    "layer, forward",
    [
        (nn.Conv2d(48, 64, 5, padding=2), lambda x, w, b: F.conv2d(x, w, b, padding=2)),
        (nn.Conv2d(48, 30, 5, 2, 2), lambda x, w, b: F.conv2d(x, w, b, 2, 2)),
        (nn.Conv2d(48, 7, 1), F.conv2d),
        (nn.ConvTranspose2d(48, 33, 5, 2, 2, 1), lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 2, 1)),
    ],
)
def test_a_layer_is_integer_arithmetic_in_any_order(layer, forward):
    torch.manual_seed(0)
    x = to_grid(torch.randn(1, 48, 9, 7) * 50)
    got = run(layer, x)
    weight = (layer.weight.detach().double() * 2**16).round().long()
    bias = ((layer.bias.detach().double() * 2**GRID).round() * 2**16).long()
    exact_sum = forward((x * 2**GRID).long(), weight, bias)  # This sum is int64 throughout.
    torch.testing.assert_close(got, to_grid(exact_sum.double() * 2.0 ** -(16 + GRID)), atol=0, rtol=0)
    order = torch.randperm(48)
    shuffled = copy.deepcopy(layer)
    shuffled.weight.data = layer.weight.data[order] if isinstance(layer, nn.ConvTranspose2d) else layer.weight.data[:, order]
    assert torch.equal(run(shuffled, x[:, order]), got)


@pytest.mark.parametrize("threads", [1, 3])
def test_thread_counts_change_nothing(threads):
    torch.manual_seed(1)
    net, x = nn.Sequential(nn.Conv2d(40, 80, 5, padding=2), nn.GELU(), nn.Conv2d(80, 20, 1)), torch.randn(1, 40, 12, 9)
    prepared = FixedPoint().prepare(net)
    expected, before = run(net, x), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            assert torch.equal(prepared(to_grid(x)), expected)  # computed on the caller's threads
    finally:
        torch.set_num_threads(before)


class _Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(24, eps=1e-6), nn.Conv2d(24, 48, 1)
        self.act, self.gate, self.out = nn.GELU(), Product(), nn.Conv2d(24, 24, 3, padding=1, groups=24)

    def forward(self, x):
        a, b = self.fc(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).chunk(2, 1)
        return x + self.out(self.gate(self.act(a), b))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 96, 1), nn.PixelShuffle(2)),
        nn.Sequential(nn.Conv2d(24, 48, 5, 2, 2), nn.LeakyReLU(), nn.ConvTranspose2d(48, 24, 5, 2, 2, 1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(24, 24, 1), nn.SiLU(), nn.Conv2d(24, 24, 1), nn.Sigmoid(), nn.Identity()),
        nn.Sequential(_Gated(), _Gated()),
    ],
)
def test_the_grid_form_is_close_to_the_network(net):
    torch.manual_seed(2)
    x = torch.randn(1, 24, 8, 10)
    got = run(net.eval(), x)
    with torch.no_grad():
        expected = net(x)
    assert on_grid(got) and (got - expected).abs().max() < 0.01 and (got - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("activation", TABLES)
def test_tables_hold_the_function_and_are_equal_on_every_machine(activation):
    x = torch.cat([torch.linspace(-30, 30, 4001, dtype=torch.float64), torch.tensor([-4096.0, 4096.0], dtype=torch.float64)])
    prepared = FixedPoint().prepare(activation())
    x = to_grid(x)
    assert on_grid(prepared(x)) and (prepared(x) - activation()(x)).abs().max() <= 2.0**-GRID
    integers = (prepared.values * 2**GRID).to(torch.int32).numpy().astype("<i4")
    assert zlib.crc32(integers.tobytes()) == TABLES[activation]


def test_large_weights_take_a_coarser_grid_and_damaged_ones_are_refused():
    conv = nn.Conv2d(4, 4, 1)
    conv.weight.data.fill_(5000.0)
    x = torch.full((1, 4, 1, 1), 0.125)
    assert run(conv, x).flatten().tolist() == pytest.approx([2500.0] * 4, abs=1)
    conv.weight.data.fill_(1e12)
    with pytest.raises(CodecError, match="too large"):
        FixedPoint().prepare(conv)


def test_values_are_clamped_rather_than_lost():
    conv = nn.Conv2d(1, 1, 1)
    conv.weight.data.fill_(3000.0)
    assert run(conv, torch.full((1, 1, 1, 1), 100.0)).item() == 4096


class _OffGrid(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.second(self.first(x) / 3)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 11), (11, 1)])
def test_depthwise_layers_are_integer_arithmetic(kernel):
    torch.manual_seed(0)
    padding = tuple(k // 2 for k in kernel)
    layer, x = nn.Conv2d(6, 6, kernel, padding=padding, groups=6), to_grid(torch.randn(1, 6, 9, 7) * 50)
    weight = (layer.weight.detach().double() * 2**16).round().long()
    bias = ((layer.bias.detach().double() * 2**GRID).round() * 2**16).long()
    sums = F.conv2d((x * 2**GRID).long(), weight, bias, padding=padding, groups=6)
    assert torch.equal(run(layer, x), to_grid(sums.double() * 2.0 ** -(16 + GRID)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.GELU, nn.PixelShuffle])
def test_a_chain_computes_what_its_modules_do_one_by_one(activation):
    torch.manual_seed(0)
    between = activation(2) if activation is nn.PixelShuffle else activation()
    modules = [nn.Conv2d(12, 16, 1), between, nn.Conv2d(4 if activation is nn.PixelShuffle else 16, 5, 3, padding=1), nn.ReLU()]
    x = torch.randn(1, 12, 6, 5) * 100
    expected = x
    for module in modules:
        expected = run(module, expected)
    assert torch.equal(run(nn.Sequential(*modules), x), expected)


def test_tables_hold_for_any_layout_and_beyond_their_ends():
    x = to_grid(torch.randn(1, 6, 5, 4) * 20)
    prepared = FixedPoint().prepare(nn.GELU())
    expected = torch.stack([prepared(value) for value in x.flatten()]).view(x.shape)
    for layout in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(prepared(layout), expected)
    assert torch.equal(prepared(x[:, 2:5]), expected[:, 2:5])


def test_leaving_the_grid_between_layers_is_refused():
    with pytest.raises(CodecError, match="left the integer grid"):
        run(_OffGrid(), torch.randn(1, 4, 2, 2))


@pytest.mark.parametrize("layer", [nn.Softmax(1), nn.GELU(approximate="tanh"), nn.BatchNorm2d(4), nn.LayerNorm((2, 2))])
def test_layers_without_a_grid_form_are_named(layer):
    with pytest.raises(CodecError, match=r"has no (integer|grid) form"):
        FixedPoint().prepare(nn.Sequential(nn.Conv2d(4, 4, 1), layer))


def test_grid_values_are_multiples_and_round_to_even():
    step = 2.0**-GRID
    x = torch.tensor([0.5 * step, 1.5 * step, -0.5 * step, 1e9, -1e9, 0.1], dtype=torch.float64)
    assert to_grid(x).tolist() == [0.0, 2 * step, 0.0, 4096.0, -4096.0, np.rint(0.1 / step) * step]
