"""Samplers against diffusers' schedulers and against closed forms; guidance; tiles."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from icmbench.codecs.diffusion.backbone.tiles import Tiles
from icmbench.codecs.diffusion.sampling.samplers import DdimSampler, DdpmSampler, GuidedPredictor, draw_noise, space_timesteps

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SHAPE = (2, 4, 8, 8)


def wave(x: torch.Tensor, t: int) -> torch.Tensor:
    """A smooth noise predictor."""
    return torch.sin(x) * (0.5 + t / 2000)


@pytest.mark.parametrize("steps", [4, 10, 28])  # Here the times are a whole number apart, as diffusers requires.
def test_ddim_equals_diffusers(backbone, steps):
    noise = draw_noise([0, 1], 1, 8, 8)
    ours = DdimSampler(steps)(wave, backbone.abar, noise[:, 0], noise)
    scheduler = DDIMScheduler(**SCHEDULE, set_alpha_to_one=True)
    scheduler.num_inference_steps = steps - 1
    x = noise[:, 0]
    for t in space_timesteps(steps):
        x = scheduler.step(wave(x, t), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 7, 20, 50])
def test_ddpm_equals_diffusers(backbone, steps, monkeypatch):
    sampler = DdpmSampler(steps)
    noise = draw_noise([0, 1], sampler.draws, 8, 8)
    ours = sampler(wave, backbone.abar, noise[:, 0], noise)
    scheduler = DDPMScheduler(**SCHEDULE, variance_type="fixed_small")
    scheduler.set_timesteps(timesteps=space_timesteps(steps))
    draws = iter(noise[:, 1:].unbind(1))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws))
    x = noise[:, 0]
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(wave(x, t), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", [DdpmSampler(5), DdpmSampler(1), DdimSampler(5), DdimSampler(1)])
def test_an_oracle_recovers_the_latent(backbone, sampler):
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))

    def oracle(x: torch.Tensor, t: int) -> torch.Tensor:
        abar = backbone.abar[t].item()
        return (x - abar**0.5 * clean) / (1 - abar) ** 0.5

    z = sampler(oracle, backbone.abar, clean, draw_noise([0, 1], sampler.draws, 8, 8))
    torch.testing.assert_close(z, clean, rtol=1e-3, atol=1e-3)


def test_times_are_the_published_ones():
    """The published code adds up a fractional stride and rounds each sum."""
    for steps in (2, 3, 20, 50, 100, 333, 1000):
        position, times = 0.0, []
        for _ in range(steps):
            times.append(round(position))
            position += 999 / (steps - 1)
        assert space_timesteps(steps) == times[::-1]
    assert space_timesteps(1) == [999]


def test_noise_depends_on_nothing_but_the_seed():
    alone = draw_noise([7], 3, 8, 16)
    assert torch.equal(draw_noise([1, 7, 2], 3, 8, 16)[1:2], alone)
    assert not torch.equal(draw_noise([8], 3, 8, 16), alone)


@torch.no_grad()
def test_guidance_in_one_batch_equals_guidance_in_two(backbone, model):
    hint = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    positive, negative = backbone.embed(["cat, dog", "tree"]), backbone.embed([""])
    guided = GuidedPredictor(backbone, model.control, hint, positive, negative, 5.0)(x, 501)
    with_text = GuidedPredictor(backbone, model.control, hint, positive)(x, 501)
    without_text = GuidedPredictor(backbone, model.control, hint, negative)(x, 501)
    assert not torch.allclose(with_text, without_text, atol=1e-4)
    torch.testing.assert_close(guided, without_text + 5.0 * (with_text - without_text), rtol=1e-3, atol=1e-3)


def count_calls(calls: list[int]):
    def run(backbone, control, x, t, context, prepared):
        calls.append(len(x))
        return x * 2

    return run


def test_one_evaluation_per_step(backbone):
    calls: list[int] = []
    hint = torch.zeros(SHAPE)
    context = torch.zeros(1, 77, 32)
    predict = GuidedPredictor(backbone, None, hint, context, context, 5.0, run=count_calls(calls))
    DdpmSampler(6)(predict, backbone.abar, hint, draw_noise([0, 1], 6, 8, 8))
    assert calls == [4] * 6


def test_pasted_tiles_equal_the_whole(backbone):
    """A pointwise prediction is the same in tiles, and a batch holds at most `batch_size` tiles."""
    calls: list[int] = []
    x = torch.randn(2, 4, 40, 56, generator=torch.Generator().manual_seed(0))
    context = torch.zeros(1, 77, 32)
    predict = GuidedPredictor(backbone, None, x, context, context, 5.0, tile=24, overlap=8, batch_size=7, run=count_calls(calls))
    torch.testing.assert_close(predict(x, 501), 2 * x)
    assert sum(calls) == 2 * 2 * len(Tiles(40, 56, 24, 8)) == 2 * 2 * 6
    assert max(calls) == 7


@pytest.mark.parametrize(("height", "width", "count"), [(96, 96, 1), (104, 96, 2), (168, 96, 3), (200, 130, 6), (8, 8, 1)])
def test_tiles_cover(height, width, count):
    tiles = Tiles(height, width, 96, 32)
    assert len(tiles) == count
    x = torch.randn(1, 3, height * 2, width * 2, generator=torch.Generator().manual_seed(0))
    pieces = tiles.cut(x, 2)
    assert {piece.shape[-2:] for piece in pieces} == {(2 * min(96, height), 2 * min(96, width))}
    torch.testing.assert_close(tiles.paste(pieces, 2), x)


@torch.no_grad()
def test_tiled_vae_is_close_to_the_whole(backbone):
    """The networks see less of the image in a tile, so the result differs a little."""
    z = torch.randn(1, 4, 24, 40, generator=torch.Generator().manual_seed(0))
    whole, tiled = backbone.decode(z), backbone.decode(z, 16, 8)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.05
    assert backbone.encode(whole, 16, 8).shape == z.shape
