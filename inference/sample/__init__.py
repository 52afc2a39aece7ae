"""What draws: chains, and the spaces that they live in."""
