"""Generators without an encoder, learned by EM: exact E-steps, and a chain for each datum."""
