"""Measurements against peers and against physics, each in the same run on the same machine (`make bench`)."""
