"""Subjects learned from a few pictures, as rows of the text encoding of a frozen diffusion."""
