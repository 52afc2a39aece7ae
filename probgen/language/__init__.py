"""What is written down: programs, distributions, optimisers, array functions, what a model is."""
