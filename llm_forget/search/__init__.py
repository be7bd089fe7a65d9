"""Choose the strength of an adapter by measuring it."""
