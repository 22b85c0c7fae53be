"""Fast convolutions on the grid give the exact sums of integers, up to the largest values that they take."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from icmbench.codecs.entropy import exact, grid_winograd  # noqa: E402
from icmbench.codecs.entropy.grid_winograd import GridWinograd  # noqa: E402
from icmbench.codecs.entropy.integer import GRID, LIMIT, WEIGHT, FixedPoint, to_grid  # noqa: E402

STEP, WEIGHT_STEP = 2.0**-GRID, 2.0**-WEIGHT
LAYERS = {
    "5x5": (lambda: nn.Conv2d(60, 64, 5, padding=2), lambda x, w: F.conv2d(x, w, padding=2)),
    "3x3": (lambda: nn.Conv2d(64, 60, 3, padding=1), lambda x, w: F.conv2d(x, w, padding=1)),
    "transposed 3x3": (lambda: nn.ConvTranspose2d(60, 64, 3, 1, 1), lambda x, w: F.conv_transpose2d(x, w, None, 1, 1)),
    "transposed 5x5": (lambda: nn.ConvTranspose2d(64, 60, 5, 2, 2, 1), lambda x, w: F.conv_transpose2d(x, w, None, 2, 2, 1)),
}


def on_grid(layer, gain=1.0):
    """A copy of the layer in float64 with weights that are multiples of WEIGHT_STEP, and these in steps."""
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    steps = (layer.weight.data * gain / WEIGHT_STEP).round()
    layer.weight.data = steps * WEIGHT_STEP
    return layer, steps.long()


def fast_sums(layer, x):
    fast = GridWinograd(layer, STEP, WEIGHT_STEP)
    largest = float(x.abs().max())
    assert fast.covers(largest)
    return exact.run_exactly(lambda: fast(x, largest))


def integer_sums(direct, x, steps):
    """The sums as int64 throughout."""
    return direct((x / STEP).long(), steps).double() * (STEP * WEIGHT_STEP)


@pytest.mark.parametrize("size", [(16, 12), (13, 23), (1, 50)])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_equal_those_of_integers(name, size):
    torch.manual_seed(0)
    make, direct = LAYERS[name]
    layer, steps = on_grid(make())
    x = to_grid(torch.randn(1, layer.in_channels, *size) * 3)
    assert torch.equal(fast_sums(layer, x), integer_sums(direct, x, steps))


@pytest.mark.parametrize("factor", [1.0, 1.01, 500.0])
@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_exact_up_to_the_reach_and_split_beyond_it(name, factor):
    """Of values as large as the bound allows, with signs that agree with a filter's, so that sums become as large as they can."""
    torch.manual_seed(1)
    make, direct = LAYERS[name]
    layer, steps = on_grid(make(), gain=8.0)
    largest = min(GridWinograd(layer, STEP, WEIGHT_STEP).reach * factor, LIMIT)
    x = to_grid(torch.where(torch.rand(1, layer.in_channels, 12, 17) < 0.5, -largest, largest))
    filters = layer.weight[0] if isinstance(layer, nn.Conv2d) else layer.weight[:, 0].flip(1, 2)
    k = filters.shape[-1]
    x[0, :, 3 : 3 + k, 5 : 5 + k] = to_grid(filters.sign() * largest)
    x = torch.where(x.abs() > largest, x - STEP * x.sign(), x)  # A bound that is off the grid may have been rounded up.
    assert torch.equal(fast_sums(layer, x), integer_sums(direct, x, steps))


def test_a_bound_that_cannot_be_met_is_seen():
    layer, _ = on_grid(nn.Conv2d(60, 64, 5, padding=2), gain=1000.0)
    fast = GridWinograd(layer, STEP, WEIGHT_STEP)
    assert fast.reach < 2 and fast.covers(fast.reach) and not fast.covers(LIMIT)


def test_the_bound_follows_from_the_weights_by_hand():
    """One weight of 1 in the middle of a 3x3 filter, so that all numbers in one dimension are known in closed form.

    At the points 1, -1, 2 and -2, the rows of B^T have the sums of absolute values 10, 10, 6 and 6, and the transformed filter is
    1, -1, 2 and -2; at 0 and infinity it is 0. The largest of the partial sums, (2 * 6)**2 = 144, allows 2**53 / 144 units. The
    last row of A^T is 1/6, 1/6, 8/24 and 8/24, so rounding moves a sum by 18 / 2**53 of (2 * 10 / 6 + 2 * 12 * 8 / 24)**2 at most,
    of which half a unit is allowed. This is the tighter bound.
    """
    layer, _ = on_grid(nn.Conv2d(60, 64, 3, padding=1))
    layer.weight.data.zero_()
    layer.weight.data[5, 7, 1, 1] = 1.0
    expected = 0.5 * 2.0**53 / (18 * (20 / 6 + 8) ** 2)
    assert GridWinograd(layer, STEP, WEIGHT_STEP).reach == pytest.approx(0.99 * expected * STEP * WEIGHT_STEP)


@pytest.mark.parametrize("scale, size", [(1.0, (16, 12)), (300.0, (16, 12)), (3000.0, (16, 12)), (1.0, (4, 5))])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_give_the_same_bits_with_and_without_the_fast_form(name, scale, size, monkeypatch):
    torch.manual_seed(2)
    net = nn.Sequential(LAYERS[name][0](), nn.ReLU())
    x = to_grid(torch.randn(1, net[0].in_channels, *size) * scale)
    results = []
    for small in (False, True):
        if small:
            monkeypatch.setattr(grid_winograd, "is_large_enough", lambda x: False)
        prepared = FixedPoint().prepare(net)
        results.append(exact.run_exactly(lambda net=prepared: net(x)))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 5, padding=2, stride=2),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, (3, 5), padding=(1, 2)),
        nn.Conv2d(64, 64, 7, padding=3),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(64, 64, 3, 2, 1, 1),
        nn.ConvTranspose2d(64, 64, 5, 2, 2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Linear(64, 64),
    ],
)
def test_other_layers_are_left_alone(layer):
    assert not grid_winograd.suits(layer)
