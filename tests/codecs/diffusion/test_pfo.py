"""Perceptual fidelity optimisation on the tiny profile with random weights, with gradients through UNet and text encoder."""

import numpy as np
import pytest
import torch

from icmbench.codecs.base import CodecError
from icmbench.codecs.diffusion import models
from icmbench.codecs.diffusion.engine import Decoding, LatentDraft
from icmbench.codecs.diffusion.prompts import clip_tokens, pfo
from icmbench.codecs.diffusion.prompts.pfo import PerceptualFidelity
from icmbench.codecs.diffusion.sampling.compression_aware import CompressionAwareSampler
from icmbench.codecs.diffusion.sampling.samplers import DdimSampler

WORDS = tuple(clip_tokens.tokenize("a red barn"))


def error(decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    return (decoded - original).abs().mean()


@pytest.fixture(scope="module")
def model(backbone):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = models.RESULIC.build_parts(backbone, "tiny")
        for conv in (*parts["control"].encoder_out, *parts["control"].encoder_in):
            torch.nn.init.normal_(conv.weight, std=0.05)
    return models.RESULIC.build_model(backbone, **parts)


@pytest.fixture
def draft(model, picture):
    """A function that drafts a 64x100 picture, with a sampler of two evaluations and strong guidance, so that words matter."""

    def make(sampler=None) -> LatentDraft:
        pixels = model.pixels(picture(64, 100))
        coded = model.latent.compress(pixels, model.backbone.encode(pixels))
        decoding = Decoding(sampler or CompressionAwareSampler(795, 3), guidance=7.0)
        return LatentDraft(model, decoding, "default", coded.payload, (64, 100))

    return make


def test_the_tokens_of_the_least_distance_are_kept(draft, picture, monkeypatch):
    """The result has as many tokens as the start, and of all tokens whose decoding was judged, those of the least distance."""
    judged: list[tuple[float, tuple[int, ...]]] = []
    first_draft = draft()
    render = first_draft.model.render
    prompts = []

    def record_prompt(hint, decoding, batch_prompts, seeds):
        prompts.append(batch_prompts[0])
        return render(hint, decoding, batch_prompts, seeds)

    def distance(decoded, original):
        assert decoded.shape == original.shape == (1, 3, 64, 100)
        value = error(decoded, original)
        judged.append((float(value), prompts[-1]))
        return value

    monkeypatch.setattr(first_draft.model, "render", record_prompt)
    search = PerceptualFidelity(iterations=4, every=1, perceptual=distance)
    best_ids = search(WORDS, picture(64, 100), first_draft, lambda ids: ids, 3)
    assert len(judged) == 5
    assert judged[0][1] == WORDS
    assert len(best_ids) == len(WORDS)
    assert best_ids == next(ids for value, ids in judged if value == min(judged)[0])
    assert len({ids for _, ids in judged}) > 2  # The search moved away from its start.
    assert all(0 <= token < clip_tokens.WORD_TOKENS for token in best_ids)
    assert search(WORDS, picture(64, 100), draft(), lambda ids: ids, 3) == best_ids  # The search is deterministic.


@pytest.mark.parametrize("projection", ["unit", "euclidean"])
def test_projection_is_to_the_nearest_embedding(backbone, projection):
    embeddings = pfo._embeddings(backbone)
    assert embeddings.shape == (49406, 32)
    ids = torch.tensor([5, 900, 49000])
    near = embeddings[ids] + 0.01 * embeddings[ids].std() * torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    nearest = PerceptualFidelity(projection=projection)._nearest(near, embeddings)
    # The ids may differ, because the tiny profile maps many of CLIP's tokens to one embedding.
    assert torch.equal(embeddings[list(nearest)], embeddings[ids])


@torch.no_grad()
def test_passing_the_text_encoder_its_own_embeddings_changes_nothing(backbone):
    context = pfo._encode(backbone.text, backbone.tokenize([WORDS]), pfo._embeddings(backbone)[list(WORDS)]).last_hidden_state
    torch.testing.assert_close(context, backbone.embed([WORDS]))
    assert not backbone.text.get_input_embeddings()._forward_hooks


def test_times_are_those_of_the_sampler(draft, picture, monkeypatch):
    times = set()
    diffuse = CompressionAwareSampler.diffuse

    def record_time(self, abar, n, z_0, z_c, eps):
        if z_0 is not z_c:  # When decoding starts, both are the hint.
            times.add(n)
        return diffuse(self, abar, n, z_0, z_c, eps)

    monkeypatch.setattr(CompressionAwareSampler, "diffuse", record_time)
    PerceptualFidelity(iterations=8, every=8, perceptual=error)(WORDS, picture(64, 100), draft(), lambda ids: ids, 0)
    assert times == {795, 530, 265}


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
    """With a heavy CLIP term the tokens' similarity to the image grows. The model enters the fingerprint."""
    pixels = draft().model.pixels(picture(64, 100))[..., :64, :100]
    similarity, embeddings = pfo._Similarity(clip, backbone, pixels), pfo._embeddings(backbone)

    def similarity_of(ids) -> float:
        return float(similarity(backbone.tokenize([ids]), embeddings[list(ids)]))

    similarities: list[float] = []
    search = PerceptualFidelity(iterations=12, every=6, clip_weight=1000.0, clip=clip, perceptual=lambda *_: torch.zeros(()))
    search(WORDS, picture(64, 100), draft(), lambda ids: similarities.append(similarity_of(ids)) or ids, 0)
    assert max(similarities[1:]) > similarities[0] + 0.05
    assert search.facts != PerceptualFidelity(iterations=12, every=6, clip_weight=1000.0, perceptual=search.perceptual).facts


def test_mistakes_are_named(draft, picture, tmp_path, backbone):
    search = PerceptualFidelity(iterations=1, perceptual=error)
    with pytest.raises(CodecError, match=r"cdm: true"):
        search(WORDS, picture(64, 100), draft(DdimSampler(3)), lambda ids: ids, 0)
    with pytest.raises(CodecError, match=r"cannot be had"):
        PerceptualFidelity(clip=tmp_path, perceptual=error)(WORDS, picture(64, 100), draft(), lambda ids: ids, 0)
    with pytest.raises(CodecError, match=r"positive rate"):
        PerceptualFidelity(rate=0)


def test_real_perceptual_network(draft, picture):
    """ST-LPIPS, whose package includes its weights, also judges a picture smaller than the network needs."""
    small = picture(20, 30)
    search = PerceptualFidelity(iterations=1, every=1, perceptual="stlpips-alex")
    assert len(search(WORDS, picture(64, 100), draft(), lambda ids: ids, 0)) == len(WORDS)
    model = draft().model
    pixels = model.pixels(small)
    payload = model.latent.compress(pixels, model.backbone.encode(pixels)).payload
    small_draft = LatentDraft(model, Decoding(CompressionAwareSampler(300, 2)), "default", payload, small.shape[:2])
    assert len(search(WORDS[:1], small, small_draft, lambda ids: ids, 0)) == 1
    assert np.array_equal(small, picture(20, 30))
