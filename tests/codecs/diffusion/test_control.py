"""The UNet run sub-block by sub-block against diffusers' own forward pass, and the control module."""

import pytest
import torch
from accelerate import init_empty_weights

from icmbench.codecs.diffusion.backbone.control import ControlModule
from icmbench.codecs.diffusion.backbone.stable_diffusion import PROFILES, DiffusionBackbone
from icmbench.codecs.diffusion.backbone.unet import embed_time
from icmbench.codecs.diffusion.latents.lfgcm import LFGCM_PROFILES, Lfgcm
from icmbench.codecs.diffusion.sampling.samplers import evaluate_unet


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return draw(2, 4, 8, 16), torch.tensor([501, 3]), draw(2, 77, 32), draw(2, 4, 8, 16)


@torch.no_grad()
def test_unet_equals_diffusers(backbone, inputs):
    x, t, context, _ = inputs
    assert torch.equal(backbone.eps(x, t, context), backbone.unet(x, t, context).sample)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@torch.no_grad()
def test_zero_initialised_control_changes_nothing(backbone, inputs, feedback, ratio):
    x, t, context, hint = inputs
    control = ControlModule(backbone.unet, ratio=ratio, feedback=feedback)
    control.copy_base(backbone.unet)
    assert torch.equal(evaluate_unet(backbone, control, x, t, context, control.prepare(hint)), backbone.eps(x, t, context))


@torch.no_grad()
def test_each_injection_counts(backbone, inputs):
    """Each of the 25 zero convolutions alone changes eps."""
    x, t, context, hint = inputs
    control = ControlModule(backbone.unet)
    base = backbone.eps(x, t, context)
    convs = [*control.encoder_out, control.middle_out, *control.decoder_out]
    assert len(convs) == 25
    for conv in convs:
        conv.bias.fill_(1.0)
        assert not torch.allclose(evaluate_unet(backbone, control, x, t, context, control.prepare(hint)), base, atol=1e-5)
        conv.bias.zero_()


@torch.no_grad()
def test_feedback_reaches_the_control(backbone, inputs):
    """With feedback, the UNet's states change what the control module injects."""
    x, t, context, hint = inputs
    control = ControlModule(backbone.unet, feedback=True)
    torch.nn.init.normal_(control.middle_out.weight)
    before = evaluate_unet(backbone, control, x, t, context, control.prepare(hint))
    torch.nn.init.normal_(control.encoder_in[0].weight)
    assert not torch.allclose(evaluate_unet(backbone, control, x, t, context, control.prepare(hint)), before, atol=1e-5)


@torch.no_grad()
def test_copied_control_computes_what_the_base_does(backbone, inputs):
    """With the UNet's weights, heads and input, and a hint of zeros, the control's middle block computes what the UNet's does."""
    x, t, context, _ = inputs
    head = max(PROFILES["tiny"].unet["block_out_channels"])  # One head per level, as in the UNet.
    control = ControlModule(backbone.unet, head_dim=head)
    control.copy_base(backbone.unet)
    weight = control.blocks[0][0].weight
    assert torch.equal(weight[:, :4], backbone.unet.conv_in.weight)
    assert torch.equal(weight[:, 4:], backbone.unet.conv_in.weight)
    injector = control.make_injector(x, embed_time(backbone.unet, t), context, control.prepare(torch.zeros_like(x)))
    for index in range(12):
        injector.encoder(index, torch.zeros(()) + torch.zeros(2, control.encoder_out[index].out_channels, 1, 1))
    control.middle_out.weight.copy_(torch.eye(64)[:, :, None, None])
    middle = injector.middle(torch.zeros(2, 64, 1, 2))
    torch.testing.assert_close(middle, backbone.mid_features(x, t, context), rtol=1e-4, atol=1e-4)


def test_published_sizes():
    """The networks have as many parameters, in millions, as the published code."""

    def millions(*modules: torch.nn.Module) -> float:
        return sum(p.numel() for module in modules for p in module.parameters()) / 1e6

    with init_empty_weights():
        full = DiffusionBackbone(PROFILES["sd21"])
        assert round(millions(full.unet), 2) == 865.91
        assert round(millions(full.vae), 2) == 83.65
        assert round(millions(full.text), 2) == 340.39
        assert round(millions(ControlModule(full.unet)), 2) == 374.02
        assert round(millions(ControlModule(full.unet, ratio=0.2)), 2) == 24.41
        assert round(millions(ControlModule(full.unet, ratio=0.2, feedback=True)), 2) == 54.81
        assert round(millions(Lfgcm()), 2) == 51.49
        small = DiffusionBackbone(PROFILES["tiny"])
        assert millions(small, ControlModule(small.unet), Lfgcm(**LFGCM_PROFILES["tiny"])) < 5


@torch.no_grad()
def test_vae_and_text(backbone):
    pixels = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    z = backbone.encode(pixels)
    assert z.shape == (2, 4, 8, 16)
    posterior = backbone.vae.encode(2 * pixels - 1).latent_dist
    torch.testing.assert_close(z, posterior.mean * 0.18215)
    assert backbone.decode(z).shape == pixels.shape
    context = backbone.embed(["cat, dog", "cat, tree", ""])
    assert context.shape == (3, 77, 32)
    assert not torch.allclose(context[0], context[1])
    assert backbone.embed(["word " * 200]).shape == (1, 77, 32)  # A long prompt is cut.
    assert torch.equal(backbone.embed(backbone.tokenize([""])), context[2:])


def test_schedule_is_that_of_stable_diffusion(backbone):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    torch.testing.assert_close(backbone.abar.float(), theirs)
