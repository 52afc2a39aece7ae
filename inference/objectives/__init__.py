"""What is maximised: variational bounds, the weight of their KL term, and its controllers."""
