"""Figures, tables and HTML pages of runs, which open without a network."""
