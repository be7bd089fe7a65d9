"""What a statement says about a run, computed from its files. Making and checking a statement call the same functions.

Texts of rows, paths, and digests from which a row could be guessed stay out. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_forget.auditing.grade import DOES_NOT_SHOW, grade
from llm_forget.auditing.results import StoredAudit, read_audit
from llm_forget.certificates.manifest import CONTROLS
from llm_forget.errors import UserError
from llm_forget.evaluation.controls import ROLES, check_controls
from llm_forget.evaluation.recount import doubts_about
from llm_forget.evaluation.results import Score, StoredResults, open_results
from llm_forget.evaluation.verdict import RULE, judge
from llm_forget.runs import Run, load_run
from llm_forget.utils.files import edits
from llm_forget.utils.safe_json import NotPlainJson, read_json
from llm_forget.utils.search_record import SEARCH_NAME, read_record

SHREDDED_NAME = "shredded.json"
# Sections of a recipe that say how the model was changed. Paths, and the text of a system prompt, are left out.
_RECIPE = (
    "method",
    "retain",
    "forget_weight",
    "alternative",
    "wrappers",
    "adapter",
    "train",
    "stop",
    "encoding",
    "seed",
)
_PRIVATE = frozenset(("path", "system_prompt", "data", "file"))
_RESULT = (
    *("method", "reason", "known_before", "reached", "before", "after", "forget_target", "utility_floor"),
    *("steps", "seconds", "forget_rows", "retain_rows", "composed"),
)
_CELL = ("attack", "group", "form", "answer", "value", "low", "high", "left", "left_low", "left_high", "rows", "why")
_FEW = 20  # forget rows below which intervals are wide


@dataclass(frozen=True)
class Evidence:
    """The files behind a statement.

    Attributes:
        run: the run.
        controls: role → suite → results of the target, the oracle or the sham.
        audit: the audit; None if there was none.
    """

    run: Run
    controls: Mapping[str, Mapping[str, StoredResults]]
    audit: StoredAudit | None

    @property
    def suites(self) -> dict[str, StoredResults]:
        """Suite → results of the run, for suites that measured a forget set."""
        return {name: one for name, one in self.run.evaluations.items() if one.forget_sets}


def read_evidence(folder: Path, controls: Path | None = None) -> Evidence:
    """Read a run, its controls and its audit.

    Args:
        folder: the run folder.
        controls: the folder of the controls; by default the one in the run's certificate.

    Raises:
        UserError: a file is damaged, edited, or of another model, or a figure does not follow from its scores.
    """
    run = load_run(folder)
    if run.problems:
        raise UserError(f"{folder}: {'; '.join(run.problems[:3])}")
    found: dict[str, dict[str, StoredResults]] = {}
    for role in ROLES:
        for file in sorted(((controls or folder / CONTROLS) / role).glob("*.json")):
            stored = open_results(file)
            if doubts := doubts_about(stored):
                raise UserError(f"the {role}'s results: {'; '.join(doubts[:3])}")
            found.setdefault(role, {})[stored.suite] = stored
    audit = read_audit(folder)
    if audit is not None and audit.problem:
        raise UserError(f"the audit {audit.problem}")
    return Evidence(run, found, audit)


def contents(found: Evidence) -> dict[str, Any]:
    """All sections that follow from the files."""
    return {
        "run": {key: found.run.result[key] for key in _RESULT if key in found.run.result},
        "recipe": _recipe(found.run.recipe),
        "environment": found.run.environment,
        "search": _search(found.run.path),
        "numbers": {name: _numbers(found, name) for name in found.suites},
        "conclusions": {name: _conclusions(found, name) for name in found.suites},
        "rule": RULE,
        "audit": _audit(found.audit),
        "shredded": _shredded(found.run.path),
        "limits": limits(found),
    }


def limits(found: Evidence) -> list[str]:
    """What the statement does not show, in words."""
    missing = [role for role in ("target", "oracle", "sham") if not found.controls.get(role)]
    says = {
        "target": "The model before unlearning was not measured with the same suite, so the change is not shown.",
        "oracle": "There is no model that never saw the rows, so nothing shows what such a model would answer.",
        "sham": "No run on other rows was compared, so effects of any training are not told apart.",
    }
    lines = [says[role] for role in missing]
    if found.audit is None:
        lines.append("No attacks were run. Other ways of asking, more training or rounding may bring answers back.")
        lines += DOES_NOT_SHOW[2:]
    else:
        lines += found.audit.grade.does_not_show
    rows = found.run.result.get("forget_rows") or 0
    if rows < _FEW:
        lines.append(f"There are {rows} rows to forget; figures of so few rows are uncertain, as their intervals say.")
    if (found.run.path / "adapter").is_dir():
        lines.append(
            "The adapter can be taken off its base, which then answers as before, and the two encode the rows."
        )
    lines.append("The statement is about the files it lists. It says nothing about other copies or models.")
    lines.append("The signature shows who says so, not that it is so: `llm-forget verify --replay` measures again.")
    return lines


def _recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    model = {key: value for key, value in (recipe.get("model") or {}).items() if key in ("dtype", "quantization")}
    return {"model": model, **{key: _without_paths(recipe[key]) for key in _RECIPE if key in recipe}}


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items() if key not in _PRIVATE}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    return _last(value) if isinstance(value, str) else value


def _last(text: str) -> str:
    """The last part of a path."""
    return text.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _search(folder: Path) -> dict[str, Any] | None:
    """The record of the search, with counts in place of terms and without folders."""
    if not (folder / SEARCH_NAME).is_file():
        return None
    found = read_record(folder / SEARCH_NAME)
    if edited := edits(found):
        raise UserError(f"{SEARCH_NAME} {edited}")
    terms = {kind: one.get("count") if isinstance(one, Mapping) else None for kind, one in found["terms"].items()}
    files = [
        {key: one.get(key) for key in ("rows", "sha256")} | {"file": _last(str(one.get("file")))}
        for one in found["files"]
    ]
    skipped = {_last(what): str(why) for what, why in found["not_searched"].items()}
    kept: dict[str, Any] = {key: found[key] for key in ("stages", "hits", "sets") if key in found}
    return {"files": files, "terms": terms, "not_searched": skipped, **kept}


def _numbers(found: Evidence, suite: str) -> dict[str, Any]:
    own = found.suites[suite]
    by_role = {"after": own, **{role: one[suite] for role, one in found.controls.items() if suite in one}}
    roles = {"target": "before"}
    return {
        "rows": {name: one["n"] for name, one in own.raw["sets"].items()},
        **{roles.get(role, role): {name: _figure(one) for name, one in stored.scores.items()}
           for role, stored in by_role.items()},
    }  # fmt: skip


def _figure(score: Score) -> dict[str, Any]:
    return {"value": score.value, "low": score.low, "high": score.high, "n": score.n}


def _conclusions(found: Evidence, suite: str) -> list[str]:
    own = found.suites[suite]
    others = {role: one[suite].with_examples() for role, one in found.controls.items() if suite in one}
    results = {**own.with_examples(), "controls": {}}
    return [*check_controls(results, others), *judge(results, others).lines]


def _audit(found: StoredAudit | None) -> dict[str, Any] | None:
    if found is None:
        return None
    settings = found.raw.get("settings") or {}
    cells = [{key: getattr(one, key) for key in _CELL} for one in found.cells]
    return {
        "grade": asdict(found.grade),
        "forms": settings.get("forms"),
        "budget": settings.get("budget"),
        "quick": settings.get("quick"),
        "served": found.raw.get("served"),
        "cells": cells,
    }


def grade_problem(found: StoredAudit | None) -> str:
    """Whether an audit's grade does not follow from its cells: the end of a sentence, or nothing."""
    if found is None:
        return ""
    same = found.grade.level == "E4"
    again = grade(found.cells, same_as_oracle=same)
    if (again.level, again.broken_by) != (found.grade.level, found.grade.broken_by):
        return f"states the grade {found.grade.level}, but its cells give {again.level}"
    return ""


def _shredded(folder: Path) -> dict[str, Any] | None:
    path = folder / SHREDDED_NAME
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except NotPlainJson as error:
        raise UserError(f"{SHREDDED_NAME} {error}") from None
    if not isinstance(found, dict) or (edited := edits(found)):
        raise UserError(f"{SHREDDED_NAME} {edited if isinstance(found, dict) else 'is no record'}")
    return {key: found.get(key) for key in ("at", "removed", "remains")}
