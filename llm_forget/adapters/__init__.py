"""LoRA adapters as files: reading and writing, arithmetic, export for servers, merging, and checks."""
