"""One run, from a checked recipe to a run folder."""
