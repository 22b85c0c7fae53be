"""The objectives that train a diffusion backbone."""

import torch

from icmbench.codecs.diffusion.backbone import stable_diffusion
from icmbench.codecs.training.backbone import standardise_latents


def test_standardised_latents_have_unit_moments_and_the_same_images():
    base = stable_diffusion.random_backbone("tiny").requires_grad_(False)
    pixels = torch.rand(4, 3, 64, 64)
    z = base.vae.encode(2 * pixels - 1).latent_dist
    decoded = base.vae.decode(z.mode()).sample
    mean, std = z.mode().mean((0, 2, 3)), z.mode().std((0, 2, 3))
    ratio = z.std / std.view(1, -1, 1, 1)
    standardise_latents(base.vae, mean, std, 0.18215)
    scaled = base.encode(pixels)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    again = base.vae.encode(2 * pixels - 1).latent_dist
    torch.testing.assert_close(again.std * 0.18215, ratio, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(base.vae.decode(again.mode()).sample, decoded, atol=1e-4, rtol=1e-4)
