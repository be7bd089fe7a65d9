"""Passes of a model over rows: token scores, KL, gradients, and the cache of their results."""
