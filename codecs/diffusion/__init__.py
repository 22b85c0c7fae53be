"""Diffusion codecs: a few components of which every codec of the family is a recipe.

    image -> backbone.encode -> z0 -> latent.compress -> bytes -> latent.decompress -> hint --+
                                text.encode -> tags --/      \\-- text.prompt -> backbone.embed -> context
                                                                                              |
    image <- backbone.decode <- z <- sampler( eps(x_t, t, context, control(hint)) ) <---------+

    backbone    Stable Diffusion: VAE, UNet, text encoder; profiles `sd21` and `tiny`
    unet        the UNet walked block by block, open to injections
    control     the control module that injects the hint
    latent      LFGCM, the latent compressor on the shared entropy core
    text        what of the image is said in words, in how many bits
    sampling    from noise and hint to a latent; classifier-free guidance; tiles
    weights     where weights come from: published checkpoints, diffusers folders, a hub, a seed
    keys        names in published checkpoints and names here

Importing this package imports none of them.
"""
