"""One VAE, whose latent's prior is one argument: a normal law, a flow, an energy, a diffusion."""
