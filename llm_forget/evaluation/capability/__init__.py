"""General capability, measured by lm-eval."""
