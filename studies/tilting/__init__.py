"""Exponential tilting and VAEBM on 25 Gaussians; see docs/systems/tilting.md."""
