"""The papers' ablations are options; each changes what is minimised: it adds or removes terms, or changes them on equal draws."""

import functools

import numpy as np
import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.codecs.training.cadc import CadcObjective
from icmbench.codecs.training.diff_icmh import DiffIcmhObjective
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
    return lambda objective_class, **options: cached(objective_class, tuple(sorted(options.items())))


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


def test_a_missing_network_of_a_loss_is_named(measured):
    for objective_class, options in (
        (SlimObjective, {"classifier": "absent.pth"}),
        (CadcObjective, {"discriminator": "absent/folder"}),
    ):
        with pytest.raises(CodecError, match=r"absent"):
            measured(objective_class, **options)
