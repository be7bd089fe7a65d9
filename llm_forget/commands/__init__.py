"""The commands of `llm-forget` that are more than a call, one module a group."""
