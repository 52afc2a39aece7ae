"""A declaration on a backend, and what runs it."""
