"""Estimates of log p(x) and of log Z, each with what can be said of its error."""
