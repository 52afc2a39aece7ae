"""Denoising diffusion GANs: few steps that may have several modes."""
