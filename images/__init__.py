"""Release images: the signed bundle that carries one, how it is built, opened and verified."""
