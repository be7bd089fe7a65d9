"""Training runs, from a checked recipe to a run folder."""
