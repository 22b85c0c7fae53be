r"""Diffusion codecs: a few components, from which each codec of the family is composed.

    image -> backbone.encode -> z0 -> latent.compress -> bytes -> latent.decompress -> hint --+
                                guide.encode -> text --/      \-- guide.prompt -> backbone.embed -> context
                                                                                              |
    image <- backbone.decode <- z <- sampler( eps(x_t, t, context, control(hint)) ) <---------+

The codecs themselves are codecs/{diff_icmh, resulic, slim, cadc}.py. A group imports only groups further down:

    codec               the codec contract: streams with their words
    scheme              the header of a stream: rate point, sampler, profile, sampling parameters
    options             options that the codecs have in common
    engine              pixels to coded latents, and streams to pixels in batches
    models              the networks of each codec with their weights; cadc_model: CADC's decoder
    analyses            bit splits, bit maps, energies and operation counts, as the papers show them

    prompts/
        guides              the contract of text guidance
        captions, tags, fixed, sources, ...    guides, their text coders, captioners and taggers
    sampling/
        samplers            DDPM, DDIM, one step; noise prediction with classifier-free guidance and tiles
        compression_aware   ResULIC's sampler
        enhance             SLIM's sampler
        colour              colour correction of decoded images
    backbone/
        stable_diffusion    VAE, UNet and text encoder; profiles `sd21` and `tiny`
        unet                the UNet run sub-block by sub-block, open to injections
        control             the control module, which injects the hint
        adapted             a rate point's own layers over a shared UNet (CADC)
        tiles               large latents in overlapping tiles
        graphs              CUDA graphs and torch.compile
        files               where weight files are searched: a folder, this package, a hub
        weights             reading weight files, and filling networks with them
        keys                translation of published tensor names
    latents/
        compressor          the base of the latent compressors, over the entropy core
        lfgcm               LFGCM, the compressor of Diff-ICMH
        vae_compressor      the compressor of ResULIC and SLIM
        cadc_compressor     the compressor of CADC
        layers              layers that they share

`backbone` and `latents` do not import each other. Importing this package imports none of them.
"""
