"""EM distillation: a one-step student of a diffusion, beside the mode-seeking way."""
