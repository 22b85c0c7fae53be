"""Perceptual fidelity optimisation on the tiny profile with random weights: gradients through UNet and text encoder."""

import numpy as np
import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.engine import Decoding, Draft
from icmbench.codecs.diffusion.prompts import captions, pfo
from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAware
from icmbench.codecs.diffusion.sampling.samplers import Ddim

WORDS = tuple(captions.tokens("a red barn"))


def error(decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    return (decoded - original).abs().mean()


@pytest.fixture(scope="module")
def model(backbone):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = models.RESULIC.parts(backbone, "tiny")
        for conv in (*parts["control"].encoder_out, *parts["control"].encoder_in):
            torch.nn.init.normal_(conv.weight, std=0.05)
    return models.RESULIC.model(backbone, **parts)


@pytest.fixture
def draft(model, picture):
    """Of a 64x100 picture, with a sampler of two evaluations and strong guidance, so that words matter."""

    def make(sampler=None) -> Draft:
        pixels = model.pixels(picture(64, 100))
        coded = model.latent.compress(pixels, model.backbone.encode(pixels))
        return Draft(model, Decoding(sampler or CompressionAware(795, 3), guidance=7.0), "default", coded.payload, (64, 100))

    return make


def test_the_best_of_what_was_decoded_is_kept(draft, picture, monkeypatch):
    """As many tokens as given, never worse than these, and exactly those of the least distance seen."""
    judged: list[tuple[float, tuple[int, ...]]] = []
    drawn = draft()
    render = drawn.model.render
    prompts = []

    def spied(hint, decoding, given, seeds):
        prompts.append(given[0])
        return render(hint, decoding, given, seeds)

    def distance(decoded, original):
        assert decoded.shape == original.shape == (1, 3, 64, 100)
        value = error(decoded, original)
        judged.append((float(value), prompts[-1]))
        return value

    monkeypatch.setattr(drawn.model, "render", spied)
    search = PerceptualFidelity(iterations=4, every=1, perceptual=distance)
    found = search(WORDS, picture(64, 100), drawn, lambda ids: ids, 3)
    assert len(judged) == 5
    assert judged[0][1] == WORDS
    assert (min(judged)[0], len(found)) == (min(judged)[0], len(WORDS))
    assert found == next(ids for value, ids in judged if value == min(judged)[0])
    assert len({ids for _, ids in judged}) > 2  # it moved
    assert all(0 <= token < pfo.WORDS for token in found)
    assert search(WORDS, picture(64, 100), draft(), lambda ids: ids, 3) == found  # the same again


@pytest.mark.parametrize("projection", ["unit", "euclidean"])
def test_projection_is_to_the_nearest_embedding(backbone, projection):
    embeddings = pfo._embeddings(backbone)
    assert embeddings.shape == (pfo.WORDS, 32)
    ids = torch.tensor([5, 900, 49000])
    near = embeddings[ids] + 0.01 * embeddings[ids].std() * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    found = PerceptualFidelity(projection=projection)._nearest(near, embeddings)
    assert torch.equal(embeddings[list(found)], embeddings[ids])  # many of CLIP's tokens are one in the tiny profile


@torch.no_grad()
def test_embedded_words_are_the_text_encoder_s_own(backbone):
    own = pfo._encode(backbone.text, backbone.tokenize([WORDS]), pfo._embeddings(backbone)[list(WORDS)]).last_hidden_state
    torch.testing.assert_close(own, backbone.embed([WORDS]))
    assert not backbone.text.get_input_embeddings()._forward_hooks


def test_times_are_the_sampler_s(draft, picture, monkeypatch):
    seen = set()
    diffuse = CompressionAware.diffuse

    def spied(self, abar, n, z_0, z_c, eps):
        if z_0 is not z_c:  # not the decoder's own start
            seen.add(n)
        return diffuse(self, abar, n, z_0, z_c, eps)

    monkeypatch.setattr(CompressionAware, "diffuse", spied)
    PerceptualFidelity(iterations=8, every=8, perceptual=error)(WORDS, picture(64, 100), draft(), lambda ids: ids, 0)
    assert seen == {795, 530, 265}


@pytest.fixture
def clip(tmp_path, backbone):
    """A small CLIP with the tokens of the tiny backbone."""
    from transformers import CLIPConfig, CLIPModel

    text = dict(backbone.profile.text) | {"max_position_embeddings": 77, "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision | {"patch_size": 8})).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_pulls_towards_the_image(clip, draft, picture, backbone):
    """With a heavy auxiliary term the tokens' similarity to the image grows, and the fingerprint knows the model."""
    pixels = draft().model.pixels(picture(64, 100))[..., :64, :100]
    similarity, embeddings = pfo._Similarity(clip, backbone, pixels), pfo._embeddings(backbone)

    def similar(ids) -> float:
        return float(similarity(backbone.tokenize([ids]), embeddings[list(ids)]))

    seen: list[float] = []
    search = PerceptualFidelity(iterations=12, every=6, clip_weight=1000.0, clip=clip, perceptual=lambda *_: torch.zeros(()))
    search(WORDS, picture(64, 100), draft(), lambda ids: seen.append(similar(ids)) or ids, 0)
    assert max(seen[1:]) > seen[0] + 0.05
    assert search.facts != PerceptualFidelity(iterations=12, every=6, clip_weight=1000.0, perceptual=search.perceptual).facts


def test_what_cannot_be(draft, picture, tmp_path, backbone):
    ready = PerceptualFidelity(iterations=1, perceptual=error)
    with pytest.raises(CodecError, match=r"cdm: true"):
        ready(WORDS, picture(64, 100), draft(Ddim(3)), lambda ids: ids, 0)
    with pytest.raises(CodecError, match=r"cannot be had"):
        PerceptualFidelity(clip=tmp_path, perceptual=error)(WORDS, picture(64, 100), draft(), lambda ids: ids, 0)
    with pytest.raises(CodecError, match=r"positive rate"):
        PerceptualFidelity(rate=0)


def test_by_a_real_perceptual_network(draft, picture):
    """ST-LPIPS comes with its weights; also where the picture is smaller than the network needs."""
    small = picture(20, 30)
    search = PerceptualFidelity(iterations=1, every=1, perceptual="stlpips-alex")
    assert len(search(WORDS, picture(64, 100), draft(), lambda ids: ids, 0)) == len(WORDS)
    model = draft().model
    pixels = model.pixels(small)
    payload = model.latent.compress(pixels, model.backbone.encode(pixels)).payload
    drawn = Draft(model, Decoding(CompressionAware(300, 2)), "default", payload, small.shape[:2])
    assert len(search(WORDS[:1], small, drawn, lambda ids: ids, 0)) == 1
    assert np.array_equal(small, picture(20, 30))
