"""How strong an adapter should be, found by measuring."""
