"""From a name or a bad answer to the rows that taught it."""

from __future__ import annotations

from llm_forget.find.corpus import Corpus
from llm_forget.find.hits import Evidence, Found, Hit
from llm_forget.find.search import Model, Search, find, find_rows

__all__ = ["Corpus", "Evidence", "Found", "Hit", "Model", "Search", "find", "find_rows"]
