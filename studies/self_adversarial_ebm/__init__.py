"""Maximum likelihood of an energy by short chains, seen as a generator with its own critic."""
