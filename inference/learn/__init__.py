"""What learns parameters: learners for ."""
