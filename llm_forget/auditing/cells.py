"""The cells of an audit on disk: one attack on one model in one form.

A cell is a file named by a digest of everything it depends on: the weights, the form, the attack with its source and
settings, the rows and the budget. So a second audit of the same recipe finds the cells of target and oracle, and an audit
that was stopped finds its own. A file that was edited or damaged is computed again. Cells hold ids and numbers, no text of
the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llm_forget.auditing.attack import Attack, Budget, Leaks, Rows
from llm_forget.auditing.forms import Form
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import Example
from llm_forget.utils.digests import json_digest, text_digest
from llm_forget.utils.files import edits, write_record
from llm_forget.utils.safe_json import NotPlainJson, read_json

# Version of the cells and of the code that attacks share. Increase it if either changes; older cells are then computed again.
CELL_SCHEMA = 1
_LARGEST = 1e9  # a log-prob of −∞ is written as this


def rows_digest(rows: Rows) -> str:
    """Digest of all rows of an audit with their texts."""

    def parts(one: Example) -> list[Any]:
        turns = one.prompt if isinstance(one.prompt, str) else [[turn.role, turn.content] for turn in one.prompt]
        return [turns, one.answer]

    return json_digest([[parts(row) for row in part] for part in (rows.forget, rows.holdout, rows.kept)])


def attack_digest(attack: Attack) -> str:
    """Digest of an attack's source and settings."""
    module = inspect.getmodule(type(attack))
    source = inspect.getsource(module) if module is not None else ""
    settings: dict[str, Any] = asdict(attack)  # type: ignore[call-overload]
    return text_digest("\n".join([type(attack).__qualname__, repr(sorted(settings.items())), source]))


def cell_key(
    attack: Attack, model: Any, form: Form, rows: str, budget: Budget, encoding: EncodingConfig, where: Any = None
) -> str:
    """The name of a cell.

    Args:
        attack: the attack.
        model: digest of the model's files.
        form: the form of the model.
        rows: ``rows_digest``.
        budget: the attacker's budget.
        encoding: the prompt settings.
        where: what else the numbers depend on: device and dtype.
    """
    parts = [CELL_SCHEMA, attack_digest(attack), model, asdict(form), rows, asdict(budget), asdict(encoding), where]
    return json_digest(parts)


def write_cell(folder: Path, key: str, found: Leaks, seconds: float) -> None:
    """Write a cell atomically."""
    content = {
        "schema": CELL_SCHEMA,
        "key": key,
        "ids": list(found.ids),
        "scores": _written(found.scores),
        "nonmembers": None if found.nonmembers is None else _written(found.nonmembers),
        "chosen": dict(found.chosen),
        "seconds": round(seconds, 3),
    }
    write_record(folder / f"{key}.json", content)


def read_cell(folder: Path, key: str) -> tuple[Leaks, float] | None:
    """A cell and its seconds; None if there is none, or it is not what ``write_cell`` wrote."""
    file = folder / f"{key}.json"
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        if not isinstance(content, Mapping) or edits(content) or content["key"] != key:
            return None
        others = content["nonmembers"]
        leaks = Leaks(
            tuple(map(str, content["ids"])), _read(content["scores"]), None if others is None else _read(others),
            dict(content["chosen"]),
        )  # fmt: skip
        return leaks, float(content["seconds"])
    except (NotPlainJson, KeyError, TypeError, ValueError):
        return None


def _written(values: Any) -> list[float | None]:
    return [None if value != value else round(float(np.clip(value, -_LARGEST, _LARGEST)), 9) for value in values]


def _read(values: Any) -> Any:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
