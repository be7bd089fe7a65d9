"""One file per way to find rows. ``Stage`` in ``llm_forget.find.search`` says what a file holds."""
