"""Everything that runs a model over rows: scores, KL, gradients, and the cache of their results."""
