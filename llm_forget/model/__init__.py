"""Load, run and change models."""
