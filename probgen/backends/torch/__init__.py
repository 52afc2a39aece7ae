"""Pyro on PyTorch."""
