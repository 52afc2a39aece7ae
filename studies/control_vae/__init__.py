"""ControlVAE: a KL divergence held at a set point by a controller of its weight."""
