"""LoRA adapters as files: arithmetic, what servers accept, merged models, and a doctor that checks all of it."""
