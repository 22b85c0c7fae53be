"""Context models and the hyperprior stream: coding agrees with `forward`, streams decode exactly, and damage is noticed."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from icmbench.codecs.base import BitstreamError, CodecError  # noqa: E402
from icmbench.codecs.entropy import exact  # noqa: E402
from icmbench.codecs.entropy.checkerboard import SCCTX, fixed_widths, ramp_widths, ratio_widths  # noqa: E402
from icmbench.codecs.entropy.coder import SymbolWriter  # noqa: E402
from icmbench.codecs.entropy.hyperprior import HyperpriorCoder  # noqa: E402
from icmbench.codecs.entropy.integer import Product  # noqa: E402
from icmbench.codecs.entropy.models import EntropyBottleneck, GaussianConditional  # noqa: E402
from icmbench.codecs.entropy.quadtree import PASSES, Quadtree4  # noqa: E402

SIZES = [(1, 1), (1, 2), (3, 1), (2, 5)]  # height and width of z; those of y are four times as large


def spread(module, seed=0):
    """The module with random weights under which latents, scales and means vary widely."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
    return module.eval()


def hyper_synthesis(inputs, outputs):
    up = [nn.ConvTranspose2d(inputs, inputs, 5, 2, 2, 1), nn.ReLU(), nn.ConvTranspose2d(inputs, inputs, 5, 2, 2, 1), nn.ReLU()]
    return nn.Sequential(*up, nn.Conv2d(inputs, outputs, 3, padding=1))


def scctx(**options):
    widths = {"context_widths": (60, 52), "parameter_widths": ramp_widths(20), **options}
    return SCCTX((4, 3, 33), 24, **widths)


class _GatedBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(channels), nn.Conv2d(channels, 2 * channels, 1)
        self.act, self.gate = nn.GELU(), Product()
        self.mix = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x):
        a, b = self.fc(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).chunk(2, 1)
        return x + self.mix(self.gate(self.act(a), b))


def quadtree(residual):
    def adapters(inputs, outputs):
        return [nn.Conv2d(inputs, outputs, 1) for _ in range(4)]

    return Quadtree4(24, adapters(24, 36), _GatedBlock(36), adapters(36, 48), adapters(48, 24) if residual else None)


MODELS = {
    "official": lambda: scctx(),
    "chandelier": lambda: scctx(order="means_scales", support="first_and_previous", parameter_widths=fixed_widths(24, 20)),
    "diff-icmh": lambda: scctx(parity="odd", separate=True, parameter_widths=ratio_widths, activation=nn.GELU),
    "quadtree": lambda: quadtree(False),
    "quadtree with residuals": lambda: quadtree(True),
}


def codec(name, mode="default"):
    """The coder of a context model, the modules that it is made of, and the number of y's channels."""
    context = widen(spread(MODELS[name](), 1))
    channels = context.channels if isinstance(context, Quadtree4) else context.starts[-1]
    h_s = spread(hyper_synthesis(6, 24), 2)
    torch.manual_seed(0)
    bottleneck, gaussian = EntropyBottleneck(6).eval(), GaussianConditional().eval()
    bottleneck.update()
    gaussian.update()
    return HyperpriorCoder(bottleneck, gaussian, h_s, context, mode), (bottleneck, gaussian, h_s, context), channels


def widen(context):
    """The context model with scales around 6, so that no latent's probability reaches the floor."""
    quad = isinstance(context, Quadtree4)
    for net in context.adapters_out if quad else [*context.parameters_anchor, *context.parameters_nonanchor]:
        bias = (net if quad else net[-1]).bias.data
        first, second = bias.chunk(2)
        (first if context.order == "scales_means" else second).add_(6)
    return context


def latents(channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = 3 * torch.randn(1, channels, 4 * size[0], 4 * size[1], generator=generator)
    return y, 4 * torch.randn(1, 6, *size, generator=generator)


@pytest.mark.parametrize("name, mode, size", list(itertools.product(MODELS, ["default", "portable"], SIZES)))
def test_streams_decode_to_what_was_coded(name, mode, size):
    coder, (bottleneck, *_), channels = codec(name, mode)
    y, z = latents(channels, size)
    coded = coder.compress(y, z)
    decoded = coder.decompress(coded.payload, *size)
    assert decoded.checksum == coded.checksum and decoded.y_hat.shape == y.shape
    assert 0 < coded.z_bits < 8 * len(coded.payload)
    assert torch.equal(coder.decompress(coded.payload, *size).y_hat, decoded.y_hat)
    torch.testing.assert_close(decoded.z_hat, bottleneck.quantise(z), atol=2e-4, rtol=0)
    if "residuals" not in name:
        assert (decoded.y_hat - y).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_coding_agrees_with_forward_and_costs_its_likelihoods(name):
    coder, (bottleneck, gaussian, h_s, context), channels = codec(name)
    y, z = latents(channels, (3, 4))
    with torch.no_grad():
        expected, likelihoods = context(y, h_s(bottleneck.quantise(z)), gaussian)
        bits = -torch.log2(likelihoods).sum() - torch.log2(bottleneck(z)[1]).sum()
    coded = coder.compress(y, z)
    got = coder.decompress(coded.payload, 3, 4).y_hat
    ties = (got - expected).abs() > 1e-3
    assert ties.float().mean() < 0.02
    assert 8 * len(coded.payload) == pytest.approx(bits.item(), rel=0.03, abs=64)


@pytest.mark.parametrize("parity, first", [("even", (0, 0)), ("odd", (0, 1))])
def test_anchors_see_no_neighbours_and_the_others_see_only_anchors(parity, first):
    """A changed latent changes the parameters only of positions that are coded after it and may see it."""
    context = spread(scctx(parity=parity), 3)
    gaussian, hyper = GaussianConditional().eval(), torch.randn(1, 24, 8, 8)
    y = 3 * torch.randn(1, 40, 8, 8)
    moved = {}
    with torch.no_grad():
        before = context(y, hyper, gaussian)[0] - y
        for position in (first, (first[0], 1 - first[1])):
            changed = y.clone()
            changed[0, 0, 4 + position[0], 4 + position[1]] += 7
            difference = (context(changed, hyper, gaussian)[0] - changed - before)[0, :4].abs().amax(0) > 1e-4
            moved[position] = {(int(r) - 4, int(c) - 4) for r, c in difference.nonzero()}
    anchor, nonanchor = first, (first[0], 1 - first[1])
    offsets = {(r - anchor[0], c - anchor[1]) for r, c in moved[anchor]}
    assert offsets and all(abs(r) <= 2 and abs(c) <= 2 and (r + c) % 2 for r, c in offsets)
    assert not moved[nonanchor]


def test_the_first_and_previous_slice_are_what_chandelier_sees():
    context = SCCTX((2, 3, 4, 5), 8, support="first_and_previous")
    assert context.supports == [[], [(0, 2)], [(0, 2), (2, 5)], [(0, 2), (5, 9)]]
    assert SCCTX((2, 3, 4, 5), 8).supports == [[], [(0, 2)], [(0, 5)], [(0, 9)]]
    assert context.channel_context[3][0].in_channels == 6


def test_each_quadtree_pass_codes_a_quarter_and_all_code_everything():
    model = quadtree(False)
    calls = []

    class Coder:
        def code(self, scales, means, target):
            calls.append(target.shape)
            return target.clone()

    y = torch.randn(1, 24, 5, 7)
    prepared = model.prepare(exact.Float32())
    got = exact.run_exactly(lambda: prepared.code(torch.zeros(1, 24, 5, 7), Coder(), y))
    assert calls == [(35, 6)] * 4 and torch.equal(got, y)
    assert sorted(sum(PASSES, ())) == sorted([0, 1, 2, 3] * 4) and all(len(set(group)) == 4 for group in zip(*PASSES))


def test_training_forward_has_gradients_everywhere():
    for name in MODELS:
        context = spread(MODELS[name](), 4).train()
        channels = context.channels if isinstance(context, Quadtree4) else context.starts[-1]
        gaussian = GaussianConditional().train()
        y = torch.randn(2, channels, 8, 8, requires_grad=True)
        y_hat, likelihoods = context(y, torch.randn(2, 24, 8, 8), gaussian)
        (y_hat.square().mean() - likelihoods.log().mean()).backward()
        assert y.grad.abs().min() > 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in context.parameters())


def test_large_latents_are_escaped():
    coder, _, channels = codec("official")
    y, z = latents(channels, (2, 2))
    y[0, 0, 0, 0], y[0, -1, 3, 3], z[0, 2, 1, 1] = 3e6, -1e5, 5e5
    coded = coder.compress(y, z)
    assert (coder.decompress(coded.payload, 2, 2).y_hat - y).abs().max() <= 1


def test_latents_that_cannot_be_coded_are_refused():
    coder, _, channels = codec("official")
    for bad in (float("nan"), 1e9):
        y, z = latents(channels, (1, 1))
        y[0, 0, 0, 0] = bad
        with pytest.raises(CodecError, match="latent"):
            coder.compress(y, z)


@pytest.mark.parametrize("mode", ["default", "portable"])
def test_damaged_payloads_never_decode_quietly(mode):
    coder, _, channels = codec("diff-icmh", mode)
    coded = coder.compress(*latents(channels, (2, 3)))
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(60):
        payload = bytearray(coded.payload)
        for _ in range(rng.integers(1, 4)):
            payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        payload = payload[: rng.integers(len(payload) // 2, len(payload) + 1)]
        if bytes(payload) == coded.payload:
            continue
        try:
            assert coder.decompress(bytes(payload), 2, 3).checksum != coded.checksum
        except BitstreamError:
            noticed += 1
    assert noticed > 40


def test_an_encoder_whose_networks_do_not_repeat_says_so(monkeypatch):
    coder, _, channels = codec("official")
    original, calls = exact.HalvedConv.__call__, itertools.count()

    def drifting(self, x):
        return original(self, x) * (1 + 1e-3 * (next(calls) > 20))

    monkeypatch.setattr(exact.HalvedConv, "__call__", drifting)
    with pytest.raises(CodecError, match="do not repeat"):
        coder.compress(*latents(channels, (2, 2)))


def test_the_encoder_reads_every_stream_back(monkeypatch):
    coder, _, channels = codec("official")
    original, sizes = SymbolWriter.finish_sized, [(2, 2), (2, 2), (1, 3)]
    coder.compress(*latents(channels, sizes[0]))

    def faulty(self, split):
        data, bits = original(self, split)
        return bytes([data[0] ^ 1]) + data[1:], bits

    monkeypatch.setattr(SymbolWriter, "finish_sized", faulty)
    for size in sizes:
        with pytest.raises(CodecError, match="did not give back"):
            coder.compress(*latents(channels, size))


def test_networks_run_twice_for_the_first_image_of_a_size_and_once_for_the_next(monkeypatch):
    coder, _, channels = codec("official")
    calls, original = [], exact.HalvedConv.__call__
    monkeypatch.setattr(exact.HalvedConv, "__call__", lambda self, x: (calls.append(1), original(self, x))[1])
    counts = []
    for size in ((2, 2), (2, 2), (2, 3), (2, 2)):
        calls.clear()
        coder.compress(*latents(channels, size, seed=len(counts)))
        counts.append(len(calls))
    assert counts == [2 * counts[1], counts[1], 2 * counts[1], counts[1]]


def test_an_unknown_mode_and_missing_tables_are_named():
    _, (bottleneck, gaussian, h_s, context), _ = codec("official")
    with pytest.raises(CodecError, match="default or portable"):
        HyperpriorCoder(bottleneck, gaussian, h_s, context, "exact")
    with pytest.raises(CodecError, match=r"update\(\)"):
        HyperpriorCoder(EntropyBottleneck(6), gaussian, h_s, context)


def test_caller_threads_and_autocast_do_not_change_a_stream():
    coder, _, channels = codec("official")
    y, z = latents(channels, (4, 6))
    expected, threads = coder.compress(y, z), torch.get_num_threads()
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            with torch.autocast("cpu", torch.bfloat16):
                assert coder.compress(y, z) == expected
                assert torch.equal(coder.decompress(expected.payload, 4, 6).y_hat, coder.decompress(expected.payload, 4, 6).y_hat)
    finally:
        torch.set_num_threads(threads)


def test_streams_of_different_sizes_in_any_order():
    coder, _, channels = codec("chandelier")
    streams = {size: coder.compress(*latents(channels, size)).payload for size in SIZES}
    first = {size: coder.decompress(payload, *size) for size, payload in streams.items()}
    for size, payload in reversed(streams.items()):
        assert torch.equal(coder.decompress(payload, *size).y_hat, first[size].y_hat)


def test_counting_symbols(monkeypatch):
    """Every latent is coded once: z in one call, then each slice of y in two passes."""
    counts, write = [], SymbolWriter.write
    monkeypatch.setattr(SymbolWriter, "write", lambda self, s, r, t: (counts.append(len(s)), write(self, s, r, t))[1])
    coder, _, channels = codec("official")
    y, z = latents(channels, (2, 3))
    coder.compress(y, z)
    assert counts == [z.numel(), *[c * 48 for c in (4, 4, 3, 3, 33, 33)]] and sum(counts[1:]) == y.numel()


DECODE = """
import sys, torch, zlib
sys.path.insert(0, {folder!r})
from test_entropy_context import codec
for line in open({path!r}):
    name, mode, payload = line.split()
    decoded = codec(name, mode)[0].decompress(bytes.fromhex(payload), 2, 5)
    print(zlib.crc32(decoded.y_hat.contiguous().numpy().tobytes()))
"""


def test_fresh_processes_decode_the_same_bits(tmp_path):
    import zlib

    expected, path = [], tmp_path / "streams"
    with path.open("w") as file:
        for name, mode in itertools.product(["official", "diff-icmh", "quadtree"], ["default", "portable"]):
            coder, _, channels = codec(name, mode)
            coded = coder.compress(*latents(channels, (2, 5)))
            expected.append(zlib.crc32(coder.decompress(coded.payload, 2, 5).y_hat.contiguous().numpy().tobytes()))
            file.write(f"{name} {mode} {coded.payload.hex()}\n")
    script = DECODE.format(folder=os.path.dirname(__file__), path=str(path))  # noqa: PTH120
    for threads in ("1", "3"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert [int(line) for line in run.stdout.split()] == expected
