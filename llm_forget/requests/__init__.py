"""A ledger of requests to forget: what is asked, what is due, what was done, and whether it stays forgotten."""
