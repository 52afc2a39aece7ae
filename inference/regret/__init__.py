"""Likelihood regret: what one optimisation a datum gains."""
