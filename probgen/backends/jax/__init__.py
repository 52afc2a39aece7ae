"""NumPyro on JAX."""
