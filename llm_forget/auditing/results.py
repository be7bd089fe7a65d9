"""Read the result of an audit. Needs no torch, so that reports and comparisons can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llm_forget.auditing.grade import Grade
from llm_forget.auditing.matrix import Cell
from llm_forget.utils.files import edits, folder_digest, folder_size
from llm_forget.utils.safe_json import NotPlainJson, read_json

_MOST = 1 << 30  # bytes of weights that are digested again when an audit is read
FOLDER_NAME, AUDIT_NAME, CELLS_NAME = "audit", "audit.json", "cells"


@dataclass(frozen=True)
class StoredAudit:
    """An audit that was read.

    Attributes:
        grade: its grade.
        cells: its matrix.
        raw: the file's content.
        problem: what makes it doubtful; empty if nothing does.
    """

    grade: Grade
    cells: tuple[Cell, ...]
    raw: Mapping[str, Any]
    problem: str = ""

    @property
    def forms(self) -> list[str]:
        """The forms, in order."""
        return list(dict.fromkeys(one.form for one in self.cells))

    @property
    def attacks(self) -> list[str]:
        """The attacks, in order."""
        return list(dict.fromkeys(one.attack for one in self.cells))

    def cell(self, attack: str, form: str) -> Cell | None:
        """One cell."""
        return next((one for one in self.cells if (one.attack, one.form) == (attack, form)), None)

    def worst(self) -> dict[str, Cell]:
        """Attack → the cell in which most is left."""
        found: dict[str, Cell] = {}
        for one in self.cells:
            if one.left is not None and (one.attack not in found or one.left > (found[one.attack].left or 0.0)):
                found[one.attack] = one
        return found


def read_audit(folder: Path, at: Path | None = None) -> StoredAudit | None:
    """The audit of a run folder; None if there is none that can be used.

    Args:
        folder: the run folder.
        at: the folder of the result; by default ``audit`` in the run folder.
    """
    file = (at or folder / FOLDER_NAME) / AUDIT_NAME
    if not file.is_file():
        return None
    try:
        raw = read_json(file)
        if not isinstance(raw, dict) or raw.get("schema") != 1:
            return None
        cells = tuple(_cell(one) for one in raw["cells"])
        graded = _grade(raw["grade"])
    except (NotPlainJson, KeyError, TypeError, ValueError):
        return None
    problems = [
        edits(raw),
        "" if raw.get("complete") else "is not finished: run it again to go on",
        _another(folder, raw),
    ]
    return StoredAudit(graded, cells, raw, " and ".join(one for one in problems if one))


def files_digests(folder: Path) -> dict[str, str]:
    """Digests of the adapter and the model in a run folder, to tell later whether an audit is of these."""
    parts = {part: folder / part for part in ("adapter", "model")}
    found = {part: folder_digest(path) for part, path in parts.items() if path.is_dir() and folder_size(path) <= _MOST}
    return {part: digest for part, digest in found.items() if digest is not None}


def _another(folder: Path, raw: Mapping[str, Any]) -> str:
    stated, found = raw.get("files"), files_digests(folder)
    if not isinstance(stated, Mapping):
        return ""
    differ = [part for part, digest in found.items() if stated.get(part) not in (None, digest)]
    return f"is of another {differ[0]} than the one in {differ[0]}/" if differ else ""


def _cell(values: Mapping[str, Any]) -> Cell:
    """A cell from JSON, with the types that readers rely on."""
    known = {one.name for one in fields(Cell)}
    found = Cell(**{key: value for key, value in values.items() if key in known})
    numbers = (
        found.value,
        found.low,
        found.high,
        found.left,
        found.left_low,
        found.left_high,
        found.p,
        *found.controls.values(),
    )
    if not all(one is None or isinstance(one, int | float) for one in numbers):
        raise TypeError("a number of a cell is no number")
    if not all(isinstance(one, str) for one in (found.attack, found.group, found.form, found.answer, found.why)):
        raise TypeError("a name of a cell is no text")
    return found


def _grade(values: Mapping[str, Any]) -> Grade:
    lines = {name: tuple(map(str, values[name])) for name in ("broken_by", "tried", "not_tried", "does_not_show")}
    level = values["level"]
    return Grade(
        None if level is None else str(level), str(values["words"]), next_step=str(values["next_step"]), **lines
    )
