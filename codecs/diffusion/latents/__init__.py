"""Latent compressors: LFGCM of Diff-ICMH, the VAE-latent compressor of ResULIC and SLIM, and that of CADC.

Each codes a latent with the entropy core and turns the decoded latent into a hint, which conditions the diffusion model."""
