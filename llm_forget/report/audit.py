"""Audits as tables: one run's matrix of attacks and forms, and the worst form of each attack for several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.auditing.matrix import NO_ORACLE, NOT_RUN, Cell
from llm_forget.auditing.results import StoredAudit, read_audit
from llm_forget.evaluation.equivalence import MARGIN, Answer
from llm_forget.report.tables import Cell as Shown
from llm_forget.report.tables import Table
from llm_forget.runs import Run

_SHORT = {
    Answer.AS_IF_NEVER_SEEN.value: "ok",
    Answer.LEFT.value: "left",
    Answer.OVERDONE.value: "over",
    Answer.TOO_FEW.value: "?",
    Answer.CANNOT_TELL.value: "–",
    NO_ORACLE: "",
}
# Answer → class of the cell, for its colour in the page.
_TONES = {
    Answer.AS_IF_NEVER_SEEN.value: "same",
    Answer.OVERDONE.value: "over",
    Answer.TOO_FEW.value: "open",
}


def legend() -> str:
    """How to read the cells."""
    return (
        "A cell is R, the share of the target's lead over the oracle that the attack gets out: 0 is the oracle, 1 the target. "
        f"ok: as if never seen (within ±{MARGIN:.0%}); left: above 0; over: below 0; ?: too few rows to tell; –: target and "
        "oracle do not differ under this attack; empty: not run."
    )


def audit_table(found: StoredAudit) -> Table:
    """Attacks × forms of one run."""
    rows = []
    for attack in found.attacks:
        cells = [found.cell(attack, form) for form in found.forms]
        group = next(one.group for one in cells if one is not None)
        rows.append([Shown(attack), Shown(group), *map(_shown, cells)])
    head = ["attack", "group", *found.forms]
    return Table(
        "audit",
        "What each attack gets out in each form",
        head,
        rows,
        legend(),
        [False, False] + [True] * len(found.forms),
    )


def audits_table(runs: Sequence[Run]) -> Table | None:
    """Each run's grade, and for each attack the form in which most is left; None if no run was audited."""
    audits = {run.name: found for run in runs if (found := read_audit(run.path)) is not None}
    if not audits:
        return None
    attacks = list(dict.fromkeys(name for found in audits.values() for name in found.attacks))
    rows = []
    for name, found in audits.items():
        worst = found.worst()
        cells = [_shown(worst.get(attack), form=True) for attack in attacks]
        level = found.grade.level or "none"
        rows.append(
            [Shown(name), Shown(level, _rank(level)), Shown("; ".join(found.grade.broken_by[:2]) or "–"), *cells]
        )
    head = ["run", "grade", "broken by", *attacks]
    note = f"Grades go from E0 to E4; none: not forgotten, or no oracle. Each attack in its worst form. {legend()}"
    numeric = [False, False, False] + [True] * len(attacks)
    return Table("audits", "Does it stay forgotten?", head, rows, note, numeric)


def _rank(level: str) -> float:
    return float(level[1:]) if level[1:].isdigit() else -1.0


def _shown(cell: Cell | None, *, form: bool = False) -> Shown:
    if cell is None or cell.answer == NOT_RUN:
        return Shown("", tone="none")
    if cell.left is None:
        short = _SHORT.get(cell.answer, "")
        value = "" if cell.value is None else f"{cell.value:.2f}"
        return Shown(f"{value} {short}".strip(), tone="none") if cell.answer == NO_ORACLE else Shown(short, tone="none")
    small = "" if cell.left_low is None or cell.left_high is None else f"[{cell.left_low:.2f}, {cell.left_high:.2f}]"
    text = f"{cell.left:.2f} {_SHORT.get(cell.answer, '')}".strip()
    return Shown(text, cell.left, cell.form if form else small, tone=tone_of(cell))


def tone_of(cell: Cell) -> str:
    """The colour class of a cell: left in four steps, same, over, open or none."""
    if cell.answer == Answer.LEFT.value and cell.left is not None:
        return f"left-{sum(cell.left >= edge for edge in (MARGIN, 0.4, 0.7))}"
    return _TONES.get(cell.answer, "none")


def forecast_lines(found: StoredAudit) -> list[str]:
    """What rounding leaves of the update, forecast from the files alone."""
    stated = found.raw.get("forecast")
    lines = []
    for name, one in stated.items() if isinstance(stated, Mapping) else ():
        numbers = [one.get(key) for key in ("kept", "ratio", "moved")] if isinstance(one, Mapping) else []
        if not numbers or not all(isinstance(value, int | float) for value in numbers):
            continue
        kept, ratio, moved = numbers
        blocks = {key: value for key, value in (one.get("blocks") or {}).items() if isinstance(value, int | float)}
        worst = min(blocks, key=lambda key: blocks[key]) if blocks else None
        more = "" if worst is None else f"; least in block {worst} ({blocks[worst]:.2f})"
        lines.append(
            f"{name}: the rounded change has a cosine of {kept:.2f} with the update, which is {ratio:.2f} bins large and moves "
            f"{moved:.0%} of the weights{more}"
        )
    return lines


def audit_story(run: Run) -> Mapping[str, Any] | None:
    """What the page of a run says about its audit; None if it was not audited."""
    found = read_audit(run.path)
    if found is None:
        return None
    settings = found.raw.get("settings") or {}
    return {
        "grade": found.grade,
        "table": audit_table(found),
        "forecast": forecast_lines(found),
        "quick": bool(settings.get("quick")) if isinstance(settings, Mapping) else False,
        "problem": found.problem,
    }
