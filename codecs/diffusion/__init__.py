"""Diffusion codecs: a few components of which every codec of the family is a recipe.

    image -> backbone.encode -> z0 -> latent.compress -> bytes -> latent.decompress -> hint --+
                                text.encode -> tags --/      \\-- text.prompt -> backbone.embed -> context
                                                                                              |
    image <- backbone.decode <- z <- sampler( eps(x_t, t, context, control(hint)) ) <---------+

    backbone    Stable Diffusion: VAE, UNet, text encoder; profiles `sd21` and `tiny`
    unet        the UNet walked block by block, open to injections
    control     the control module that injects the hint
    compressor  what latent compressors share, on the entropy core; latent: LFGCM, Diff-ICMH's
                vae_compressor: ResULIC's and SLIM's; layers: what they are built of
    guides      the contract of text guidance; text: tags from a vocabulary
    sampling    from noise and hint to a latent; classifier-free guidance; tiles
                compression_aware: ResULIC's sampler; residual, pfo: its words, and better tokens
    engine      pixels to stream and back, in batches; codec: the codec contract over it
    models      the networks of a recipe with their weights
    weights     where weights come from: published checkpoints, diffusers folders, a hub, a seed
    adapted     a rate point's own layers over a shared UNet (CADC)
    analyses    bit splits, bit maps, energies and operation counts of the papers
    keys        names in published checkpoints and names here

Importing this package imports none of them.
"""
