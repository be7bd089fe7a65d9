"""The demo: invented people, learned and forgotten by a real small model."""
