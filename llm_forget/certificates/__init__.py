"""Certificates of unlearning runs: signed statements that others can check, and the pages for people."""
