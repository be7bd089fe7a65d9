"""llm-forget: make a language model forget, and measure that it did."""

__version__ = "0.1.0"
