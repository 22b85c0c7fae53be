"""Samplers, which turn noise and a hint into a VAE latent; noise prediction with guidance and tiles; and colour correction."""
