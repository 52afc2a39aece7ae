"""Likelihood regret, as published and on other data."""
