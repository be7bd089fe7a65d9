"""Measure what a model still knows: score once, generate once, and compute every metric from that."""
