"""Everything that loads, runs or changes a model."""
