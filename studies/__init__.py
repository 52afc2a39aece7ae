"""Reproductions of published results; they are not part of the wheel."""
