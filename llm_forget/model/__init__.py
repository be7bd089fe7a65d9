"""Everything that loads, runs or reads a model."""
