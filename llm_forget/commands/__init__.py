"""Commands of `llm-forget`, a module a group."""
