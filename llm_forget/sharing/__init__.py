"""Share a run: adapter, card, report and evidence, and never data."""
