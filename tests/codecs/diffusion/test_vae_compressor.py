"""The compressor of VAE latents: its size, and streams that hold what training computes."""

import math

import pytest
import torch

from icmbench.codecs.base import BitstreamError
from icmbench.codecs.diffusion.latents.vae_compressor import VAE_COMPRESSOR_PROFILES, VaeCompressor


def random_compressor(profile: str, seed: int = 1) -> VaeCompressor:
    """A compressor with random weights whose latents are not all zero, with scales that fit them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        latent = VaeCompressor(**VAE_COMPRESSOR_PROFILES[profile])
        torch.nn.init.normal_(latent.encoder[-1].weight, std=0.3 if profile == "tiny" else 0.1)
        torch.nn.init.normal_(latent.hyper_enc[-1].weight, std=0.3)
        for net in (*latent.context.parameters_anchor, *latent.context.parameters_nonanchor):
            torch.nn.init.constant_(net[-1].bias[: net[-1].out_channels // 2], 1.5)
    latent.update()
    return latent.eval().requires_grad_(False)


def test_full_profile_has_the_published_size():
    """The published size is 13.07M parameters; the authors' code never runs 0.27M of them (a branch `f_c`)."""
    with torch.device("meta"):
        latent = VaeCompressor(**VAE_COMPRESSOR_PROFILES["sd21"])
    count = sum(parameter.numel() for parameter in latent.parameters())
    assert count == 13_072_908 - 265_344 == 12_807_564


@pytest.mark.parametrize("mode", ["default", "portable"])
@pytest.mark.parametrize(("profile", "height", "width"), [("tiny", 128, 640), ("sd21", 128, 384)])
def test_stream_holds_the_latents_of_the_forward_pass(profile, height, width, mode):
    latent = random_compressor(profile)
    ref = torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    hint, likelihoods = latent(torch.empty(0), ref)
    coded = latent.compress(torch.empty(0), ref, mode)
    y_hat, z_hat, checksum = latent.decompress(coded.payload, height, width, mode)
    assert checksum == coded.checksum
    assert y_hat.shape == (1, sum(latent.context.slices), height // 32, width // 32)
    assert z_hat.shape == (1, latent.entropy_bottleneck.channels, height // 128, width // 128)
    assert y_hat.abs().max() > 1  # The latents are not all zero.
    if mode == "default":  # The integer networks of the portable mode differ a little from the forward pass.
        torch.testing.assert_close(latent.hint(y_hat, z_hat), hint, rtol=1e-4, atol=1e-4)
    bits = sum(-p.log2().sum().item() for p in likelihoods.values())
    assert math.isclose(8 * len(coded.payload), bits, rel_tol=0.05, abs_tol=64)
    with pytest.raises(BitstreamError):
        latent.decompress(coded.payload[:-4], height, width, mode)


def test_training_reaches_every_parameter():
    latent = random_compressor("tiny").train().requires_grad_(True)
    ref = torch.randn(2, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    hint, likelihoods = latent(torch.empty(0), ref)
    (sum(-p.log2().sum() for p in likelihoods.values()) + (hint - ref).square().sum()).backward()
    idle = {name for name, parameter in latent.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert idle == {"entropy_bottleneck.quantiles"}  # These have a loss of their own.
    latent.entropy_bottleneck.auxiliary_loss().backward()
    assert latent.entropy_bottleneck.quantiles.grad.any()
