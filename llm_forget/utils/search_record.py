"""Read the records of a search for the forget rows, and of a search again after unlearning. They hold no text of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson, read_json

SEARCH_NAME = "search.json"  # in a folder of sets, and in a run folder
AGAIN_NAME = "search_again.json"  # in a run folder: the search with the unlearned model
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


def read_again(path: Path) -> dict[str, Any]:
    """Read the record of a search again.

    Raises:
        UserError: it is none.
    """
    try:
        found = read_json(path)
    except NotPlainJson as error:
        raise UserError(f"{path} {error}; write it again: llm-forget find --again RUN") from None
    counts = ("asked", "after", "names", "chance", "p_value")
    before = found.get("before") if isinstance(found, dict) else None
    if (
        not isinstance(found, dict)
        or not all(_is_number(found.get(name)) for name in counts)
        or not (before is None or _is_number(before))
        or not isinstance(found.get("above_chance"), bool)
    ):
        raise UserError(f"{path} is no record of a search again; write it again: llm-forget find --again RUN")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
