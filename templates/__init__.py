"""Templates of local files."""
