"""The papers' ablations are options; each changes what is minimised: it adds or removes terms, or changes them on equal draws."""

import functools
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.codecs.training.cadc import CadcObjective
from icmbench.codecs.training.diff_icmh import DiffIcmhObjective
from icmbench.codecs.training.loss_networks import clip_distance
from icmbench.codecs.training.resulic import ResulicObjective
from icmbench.codecs.training.slim import SlimObjective

NETWORKS = {"perceptual": "random"}
DEFAULTS = {  # Options of each objective that are not under test.
    DiffIcmhObjective: {"text_dropout": 0.0},
    ResulicObjective: {"text_dropout": 0.0, **NETWORKS},
    SlimObjective: {"text_dropout": 0.0, "classifier": "random", "gain_limit": 0.0, **NETWORKS},
    CadcObjective: {"captions": "data", "clip_source": "random", "discriminator": "random", "rank_lora": 4, **NETWORKS},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A function that builds an objective and returns its terms on one batch under one seed, its weights and its needs."""
    path = tmp_path_factory.mktemp("ablations") / "backbone.safetensors"
    models.save_backbone(stable_diffusion.random_backbone("tiny", 1), path)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = (255 * torch.nn.functional.interpolate(pixels, (256, 256), mode="bicubic").clamp(0, 1)).to(torch.uint8)
    mask = torch.zeros(2, 1, 256, 256, dtype=torch.uint8)
    mask[..., :64] = 255
    texts = ["a red barn in a field", "two dogs"]

    def measure(objective_class, **options):
        side = 256 if objective_class is CadcObjective else 128
        torch.manual_seed(0)
        objective = objective_class(
            6 if objective_class is ResulicObjective else 2,
            profile="tiny",
            backbone=path,
            **{**DEFAULTS[objective_class], **options},
        ).train()
        batch = {"pixels": pixels[..., :side, :side], "mask": mask[..., :side, :side], "text": texts}
        batch |= {"slot": torch.tensor([-1, -1]), "label": torch.tensor([3, 7])}
        torch.manual_seed(1)
        with torch.no_grad():
            terms = {name: float(value) for name, value in objective(batch).items()}
        return terms, objective.weights, objective.needs

    cached = functools.lru_cache(lambda objective_class, options: measure(objective_class, **dict(options)))

    def measured(objective_class, **options):
        return cached(objective_class, tuple(sorted(options.items())))

    measured.backbone = path
    return measured


def differing(first, second):
    """Names of the terms whose values differ."""
    return {name for name in first if name in second and not np.isclose(first[name], second[name], rtol=1e-6)}


def test_semantic_consistency_off_elsewhere_and_under_noise(measured):
    full, full_weights, _ = measured(DiffIcmhObjective)
    without, ablated_weights, _ = measured(DiffIcmhObjective, semantic=0.0)
    assert set(full) - set(without) == {"semantic"} and not differing(full, without)
    assert full_weights["semantic"] == 2 and not ablated_weights["semantic"]
    for option in ({"semantic_location": "encoder"}, {"semantic_location": "decoder"}, {"semantic_noise": 0.3}):
        assert differing(full, measured(DiffIcmhObjective, **option)[0]) == {"semantic"}, option
    values = [measured(DiffIcmhObjective, semantic_noise=noise)[0]["semantic"] for noise in (0.0, 0.1, 0.6)]
    assert len(set(values)) == 3


@pytest.mark.parametrize("objective_class", [DiffIcmhObjective, ResulicObjective, SlimObjective])
def test_text_off(measured, objective_class):
    full, _, needs = measured(objective_class)
    without, _, ablated_needs = measured(objective_class, text=False)
    assert needs - ablated_needs == {"text"}
    assert "eps" in differing(full, without) and not differing(full, without) & {"bpp", "latent", "guide"}


def test_compression_aware_diffusion_off(measured):
    full, plain = measured(ResulicObjective)[0], measured(ResulicObjective, cdm=False)[0]
    assert full.keys() == plain.keys()
    assert differing(full, plain) == {
        "eps",
        "mse",
        "lpips",
    }  # The diffusion changes, and what is estimated by it, but no compressor.


def test_training_reads_the_eta_of_sampling(measured, monkeypatch):
    """The latents that the network sees are those of equation 11 with the gamma_n of equation 30 (eta 0) or 34 (eta 1)."""
    shares = {}
    for eta in (0, 1):
        torch.manual_seed(0)
        process = ResulicObjective(6, profile="tiny", backbone=measured.backbone, stage=1, eta=eta, text=False)
        base, z0, hint = process.base, torch.zeros(64, 4, 4, 4), torch.ones(64, 4, 4, 4)
        predict = Mock(side_effect=lambda x, t, context, hint: torch.zeros_like(x))
        monkeypatch.setattr(process, "predict", predict)
        torch.manual_seed(1)
        eps, _, _, _ = process._denoise_compression_aware(z0, hint, torch.zeros(64, 77, 32))
        x, t = predict.call_args.args[:2]
        a_n, a_level = base.abar[t], base.abar[300]
        odds = a_level / (1 - a_level)
        expected = (1 - a_n) / a_n.sqrt() * odds if eta else ((1 - a_n) * odds).sqrt()
        share = x.double() - (1 - a_n).sqrt().view(-1, 1, 1, 1) * eps
        torch.testing.assert_close(share, expected.view(-1, 1, 1, 1).expand_as(share), rtol=0, atol=1e-5)
        assert process.trained_with == {"cdm": True, "eta": eta}
        shares[eta] = share
    assert (shares[0] - shares[1]).abs().max() > 0.1
    full, stochastic = measured(ResulicObjective), measured(ResulicObjective, eta=1)
    assert differing(full[0], stochastic[0]) == {"eps", "mse", "lpips"}


def test_second_stages_add_terms(measured):
    for objective_class, added in (
        (ResulicObjective, {"mse", "lpips"}),
        (SlimObjective, {"mse", "lpips", "task"}),
        (CadcObjective, {"auxiliary", "adversarial", "discriminator"}),
    ):
        (first, first_weights, _), (second, second_weights, _) = measured(objective_class, stage=1), measured(objective_class)
        assert set(second_weights) - set(first_weights) == added and set(second) - set(first) <= added
    assert measured(ResulicObjective, stage=1)[1]["bpp"] == 4 and measured(ResulicObjective)[1]["bpp"] == 6
    assert measured(CadcObjective, stage=1)[1]["bpp"] == 0.5 and measured(CadcObjective)[1]["bpp"] == 2


def test_region_of_interest_off(measured):
    masked, _, needs = measured(SlimObjective)
    whole, _, ablated_needs = measured(SlimObjective, roi=False)
    assert needs - ablated_needs == {"mask"} and differing(masked, whole) == {"guide", "mse", "lpips"}
    assert masked["guide"] < whole["guide"] and masked["mse"] < whole["mse"]  # Only errors within the mask count.
    assert set(masked) - set(measured(SlimObjective, task=0.0)[0]) == {"task"}


def test_cadc_without_each_of_its_parts(measured):
    full, weights, needs = measured(CadcObjective)
    without_ugaq = measured(CadcObjective, ugaq=False)[0]
    assert full.keys() == without_ugaq.keys() and {"bpp", "mse"} <= differing(full, without_ugaq)
    _, ablated_weights, _ = measured(CadcObjective, auxiliary=0.0)  # Without ADGIC the term is logged, but not minimised.
    assert set(weights) - set(ablated_weights) == {"auxiliary"}
    without_captions, _, ablated_needs = measured(CadcObjective, captions="none")
    assert needs == {"text"} and not ablated_needs
    assert "mse" in differing(full, without_captions) and not differing(full, without_captions) & {"bpp", "auxiliary"}
    terms, ablated_weights, _ = measured(CadcObjective, adversarial=0.0)
    assert set(full) - set(terms) == {"adversarial", "discriminator"} == set(weights) - set(ablated_weights)


def test_the_decoder_captions_its_auxiliary_picture(measured):
    images = []

    def captioner(image):
        images.append(image)
        return "a red barn"

    captioned, _, needs = measured(CadcObjective, captions="decoder", captioner=captioner)
    assert not needs and [image.shape for image in images] == [(256, 256, 3)] * 2
    assert "mse" in differing(captioned, measured(CadcObjective, captions="none")[0])


@pytest.mark.parametrize("options", [{"stage": 1}, {"auxiliary": 0.0}])
def test_a_picture_that_is_not_trained_is_not_described(measured, options):
    """Only the stage with L_aux trains the auxiliary picture; before it, the fixed prompt stands alone."""

    def captioner(image):
        raise AssertionError("noise was described")

    undescribed = measured(CadcObjective, captions="decoder", captioner=captioner, **options)
    assert undescribed == measured(CadcObjective, captions="none", **options)


def test_cadc_trains_with_its_rounding_step_and_a_map_per_channel(measured):
    full = measured(CadcObjective, stage=1)[0]
    for options in ({"delta": 0.25}, {"uncertainty_channels": 32}):
        changed = measured(CadcObjective, stage=1, **options)[0]
        assert changed.keys() == full.keys() and {"bpp", "mse"} <= differing(full, changed)
    with pytest.raises(CodecError, match=r"uncertainty_channels is 1 or 32"):
        measured(CadcObjective, stage=1, uncertainty_channels=3)


def test_the_clip_loss_is_the_l2_distance_of_unit_embeddings():
    """Section 7.2 of CADC; embeddings at 90 degrees are sqrt(2) apart, and at 60 degrees 1, where 1 - cos would be 1 and 1/2."""
    distance = clip_distance("random", "cpu")
    embeddings = iter([[[3.0, 0.0], [2.0, 0.0]], [[0.0, 5.0], [0.5, 0.75**0.5]]])
    distance.network.forward = lambda pixels: SimpleNamespace(image_embeds=torch.tensor(next(embeddings)))
    pixels = torch.rand(2, 3, 40, 40)
    assert float(distance(pixels, pixels)) == pytest.approx((2**0.5 + 1) / 2, rel=1e-6)
    near = (pixels + 0.01 * torch.rand(2, 3, 40, 40)).requires_grad_()
    distance = clip_distance("random", "cpu")
    distance(near, pixels).backward()
    assert near.grad.isfinite().all() and near.grad.abs().max() > 0
    same = pixels.clone().requires_grad_()
    value = distance(same, pixels)
    value.backward()
    assert float(value.detach()) == 0 and same.grad.isfinite().all()


def test_a_missing_network_of_a_loss_is_named(measured):
    for objective_class, options in (
        (SlimObjective, {"classifier": "absent.pth"}),
        (CadcObjective, {"discriminator": "absent/folder"}),
    ):
        with pytest.raises(CodecError, match=r"absent"):
            measured(objective_class, **options)
