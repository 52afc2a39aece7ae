"""Diffusion models on 25 Gaussians and on digits: samples, likelihoods, and what steps cost."""
