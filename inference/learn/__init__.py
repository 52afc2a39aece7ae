"""What learns parameters: algorithms for `pg.fit`."""
