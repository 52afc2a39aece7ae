"""What stands on disk, and what a thing is by its content."""
