"""The roof: the story of one node's upgrade, and the command line."""
