"""General capability, by lm-eval."""
