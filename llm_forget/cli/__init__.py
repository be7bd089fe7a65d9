"""The command line: `llm-forget`, and the launch functions of the recipe scripts."""
