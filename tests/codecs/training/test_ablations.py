"""The papers' ablations are options, and each changes what is minimised: terms come and go, or differ on the same draws."""

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
USUAL = {
    DiffIcmhObjective: {"text_dropout": 0.0},
    ResulicObjective: {"text_dropout": 0.0, **NETWORKS},
    SlimObjective: {"text_dropout": 0.0, "classifier": "random", "gain_limit": 0.0, **NETWORKS},
    CadcObjective: {"captions": "data", "clip_source": "random", "discriminator": "random", "rank_lora": 4, **NETWORKS},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(objective, options) -> its terms on one batch under one seed, its weights and needs."""
    path = tmp_path_factory.mktemp("ablations") / "backbone.safetensors"
    models.save_backbone(stable_diffusion.random("tiny", 1), path)
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = (255 * torch.nn.functional.interpolate(pixels, (256, 256), mode="bicubic").clamp(0, 1)).to(torch.uint8)
    mask = torch.zeros(2, 1, 256, 256, dtype=torch.uint8)
    mask[..., :64] = 255
    texts = ["a red barn in a field", "two dogs"]

    def measure(kind, **options):
        side = 256 if kind is CadcObjective else 128
        torch.manual_seed(0)
        objective = kind(
            2 if kind is not ResulicObjective else 6, profile="tiny", backbone=path, **{**USUAL[kind], **options}
        ).train()
        batch = {"pixels": pixels[..., :side, :side], "mask": mask[..., :side, :side], "text": texts}
        batch |= {"slot": torch.tensor([-1, -1]), "label": torch.tensor([3, 7])}
        torch.manual_seed(1)
        with torch.no_grad():
            terms = {name: float(value) for name, value in objective(batch).items()}
        return terms, objective.weights, objective.needs

    cached = functools.lru_cache(lambda kind, options: measure(kind, **dict(options)))
    return lambda kind, **options: cached(kind, tuple(sorted(options.items())))


def differing(first, second):
    return {name for name in first if name in second and not np.isclose(first[name], second[name], rtol=1e-6)}


def test_semantic_consistency_off_elsewhere_and_under_noise(measured):
    usual, weights, _ = measured(DiffIcmhObjective)
    without, light, _ = measured(DiffIcmhObjective, semantic=0.0)
    assert set(usual) - set(without) == {"semantic"} and not differing(usual, without)
    assert weights["semantic"] == 2 and not light["semantic"]
    for other in ({"semantic_location": "encoder"}, {"semantic_location": "decoder"}, {"semantic_noise": 0.3}):
        assert differing(usual, measured(DiffIcmhObjective, **other)[0]) == {"semantic"}, other
    values = [measured(DiffIcmhObjective, semantic_noise=noise)[0]["semantic"] for noise in (0.0, 0.1, 0.6)]
    assert len(set(values)) == 3


@pytest.mark.parametrize("kind", [DiffIcmhObjective, ResulicObjective, SlimObjective])
def test_text_off(measured, kind):
    usual, _, needs = measured(kind)
    without, _, fewer = measured(kind, text=False)
    assert needs - fewer == {"text"}
    assert "eps" in differing(usual, without) and not differing(usual, without) & {"bpp", "latent", "guide"}


def test_compression_aware_diffusion_off(measured):
    usual, plain = measured(ResulicObjective)[0], measured(ResulicObjective, cdm=False)[0]
    assert usual.keys() == plain.keys()
    assert differing(usual, plain) == {"eps", "mse", "lpips"}  # what is noised, and what is estimated from it; not the compressor


def test_first_stages_lack_what_the_second_ones_add(measured):
    for kind, added in (
        (ResulicObjective, {"mse", "lpips"}),
        (SlimObjective, {"mse", "lpips", "task"}),
        (CadcObjective, {"auxiliary", "adversarial", "discriminator"}),
    ):
        (first, before, _), (second, after, _) = measured(kind, stage=1), measured(kind)
        assert set(after) - set(before) == added and set(second) - set(first) <= added
    assert measured(ResulicObjective, stage=1)[1]["bpp"] == 4 and measured(ResulicObjective)[1]["bpp"] == 6
    assert measured(CadcObjective, stage=1)[1]["bpp"] == 0.5 and measured(CadcObjective)[1]["bpp"] == 2


def test_region_of_interest_off(measured):
    usual, _, needs = measured(SlimObjective)
    whole, _, fewer = measured(SlimObjective, roi=False)
    assert needs - fewer == {"mask"} and differing(usual, whole) == {"guide", "mse", "lpips"}
    assert usual["guide"] < whole["guide"] and usual["mse"] < whole["mse"]  # a part of the picture counts
    assert set(usual) - set(measured(SlimObjective, task=0.0)[0]) == {"task"}


def test_cadc_without_each_of_its_parts(measured):
    usual, weights, needs = measured(CadcObjective)
    flat = measured(CadcObjective, ugaq=False)[0]
    assert usual.keys() == flat.keys() and {"bpp", "mse"} <= differing(usual, flat)
    _, fewer, _ = measured(CadcObjective, auxiliary=0.0)  # ADGIC: the picture is still measured, but nothing pulls at it
    assert set(weights) - set(fewer) == {"auxiliary"}
    wordless, _, none = measured(CadcObjective, captions="none")
    assert needs == {"text"} and not none
    assert "mse" in differing(usual, wordless) and not differing(usual, wordless) & {"bpp", "auxiliary"}
    calm = measured(CadcObjective, adversarial=0.0)
    assert set(usual) - set(calm[0]) == {"adversarial", "discriminator"} == set(weights) - set(calm[1])


def test_the_decoder_captions_its_auxiliary_picture(measured):
    seen = []

    def captioner(image):
        seen.append(image)
        return "a red barn"

    told, _, needs = measured(CadcObjective, captions="decoder", captioner=captioner)
    assert not needs and [image.shape for image in seen] == [(256, 256, 3)] * 2
    assert "mse" in differing(told, measured(CadcObjective, captions="none")[0])


def test_what_a_loss_looks_through_is_named_when_it_is_missing(measured):
    for kind, options in ((SlimObjective, {"classifier": "absent.pth"}), (CadcObjective, {"discriminator": "absent/folder"})):
        with pytest.raises(CodecError, match=r"absent"):
            measured(kind, **options)
