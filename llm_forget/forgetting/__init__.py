"""From a model and a list of rows to a measured adapter: what `llm-forget forget` and `llm-forget new` know."""
