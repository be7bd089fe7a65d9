"""Commands of `llm-forget`, a module a subject; `cli.py` registers them."""
