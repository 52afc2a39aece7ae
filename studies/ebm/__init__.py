"""Energies learned by maximum likelihood with Langevin chains: where do the chains start, and how
hot are they?"""
