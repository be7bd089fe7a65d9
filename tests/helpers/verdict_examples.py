"""Results made by hand, and their verdicts."""

from __future__ import annotations

from typing import Any

from llm_forget.evaluation.verdict import Verdict, judge

Entry = dict[str, Any]
Result = dict[str, Any]


def entry(value: float | None, width: float | None = 0.05, forgotten: str = "low", **more: Any) -> Entry:
    low, high = (None, None) if value is None or width is None else (value - width, value + width)
    return {"value": value, "low": low, "high": high, "n": 20, "n_nan": 0, "forgotten": forgotten} | more


def keep(value: float, width: float | None = 0.05) -> Entry:
    return entry(value, width, "none")


def result(forget: dict[str, Entry] | None = None, retain: dict[str, Entry] | None = None, **more: Any) -> Result:
    sets = {"forget": {"forget": True, "metrics": forget or {}}, "retain": {"forget": False, "metrics": retain or {}}}
    return {"sets": sets, **more}


def answers(value: float, width: float | None = 0.05, **more: Any) -> Result:
    """Return a result with one main forget figure."""
    return result({"probability": entry(value, width)}, **more)


TARGET, ORACLE = answers(0.9), answers(0.1)


def of(own: Result, target: Result | None = TARGET, oracle: Result | None = ORACLE, **more: Result) -> Verdict:
    given = {"target": target, "oracle": oracle, **more}
    return judge(own, {role: one for role, one in given.items() if one is not None})


def line(found: Verdict, start: str) -> str:
    (text,) = [one.text for one in found.findings if one.text.startswith(start)]
    return text
