"""Runs to look at: figures, and one HTML page that opens without a network."""
