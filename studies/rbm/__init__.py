"""Restricted Boltzmann machines: their log Z is exact, which annealed sampling must meet."""
