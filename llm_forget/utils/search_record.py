"""Read the record of a search: what was searched for the forget rows, and with what. It holds no text of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson, read_json

SEARCH_NAME = "search.json"  # in a folder of sets, and in a run folder
_MAPPINGS = ("terms", "hits", "not_searched")
_LISTS = ("files", "stages")


def read_record(path: Path) -> dict[str, Any]:
    """Read a search record.

    Raises:
        UserError: it is no record of a search.
    """
    try:
        found = read_json(path)
    except NotPlainJson as error:
        raise UserError(f"{path} {error}; give the record that llm-forget find wrote") from None
    if (
        not isinstance(found, dict)
        or not all(isinstance(found.get(name), dict) for name in _MAPPINGS)
        or not all(isinstance(found.get(name), list) for name in _LISTS)
        or not all(isinstance(file, dict) for file in found["files"])
    ):
        raise UserError(f"{path} is no record of a search; give the one that llm-forget find wrote")
    return found
