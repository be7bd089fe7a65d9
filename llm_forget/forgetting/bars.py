"""The bars of an unlearned model: what counts as forgotten and as unharmed. It reads result dictionaries and needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_forget.evaluation.equivalence import Answer
from llm_forget.evaluation.verdict import judge

PVALUE, AUC, NEIGHBOURS, RETAIN, POINTS = 0.05, 0.10, 0.93, 0.97, 2.0
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        name: what is asked.
        about: "forget", or "kept" for harm.
        value: what was found, in words; or why it could not be measured.
        reached: None if it could not be measured.
    """

    name: str
    about: Literal["forget", "kept"]
    value: str
    reached: bool | None


def bars(
    results: Results, *, target: Results | None, oracle: Results | None, reached: bool | None, known: bool | None
) -> list[Bar]:
    """Judge a model.

    Args:
        results: its result.
        target: the same suite's result for the model before unlearning.
        oracle: the result for a model that never saw the forget rows; None without one.
        reached: whether the run reached its own forget target; None without one.
        known: whether the model knew the forget rows before the run.
    """
    return [
        _own(reached, known),
        _told_apart(results, oracle),
        _attack(results, oracle),
        _left(results, target, oracle),
        _kept("neighbours", results, target, NEIGHBOURS, "--neighbours"),
        _kept("retain", results, target, RETAIN, "--retain"),
        _capability(results, target),
    ]


def _own(reached: bool | None, known: bool | None) -> Bar:
    name = "the run's forget target"
    if known is False:
        return Bar(name, "forget", "the model did not know these rows", None)
    return Bar(name, "forget", {True: "reached", False: "not reached", None: "none was set"}[reached], reached)


def _told_apart(results: Results, oracle: Results | None) -> Bar:
    name = f"not told apart from the oracle (paired p > {PVALUE})"
    test = ((results.get("forget_quality") or {}).get("forget") or {}).get("arithmetic")
    if oracle is None:
        return Bar(name, "forget", "needs --oracle", None)
    if test is None or test.get("paired_pvalue") is None:
        return Bar(name, "forget", "needs paraphrased_answer and perturbed_answer in the forget rows", None)
    p = float(test["paired_pvalue"])
    return Bar(name, "forget", f"p = {p:.2g}, D = {test['statistic']:.2f}", p > PVALUE)


def _attack(results: Results, oracle: Results | None) -> Bar:
    name = f"loss attack's AUC within {AUC} of the oracle's"
    own, other = _auc(results), None if oracle is None else _auc(oracle)
    if own is None or other is None:
        missing = [flag for flag, value in (("--holdout", own), ("--oracle", oracle)) if value is None]
        return Bar(name, "forget", f"needs {' and '.join(missing) or 'the same attack on the oracle'}", None)
    return Bar(name, "forget", f"{own:.2f}, oracle {other:.2f}", abs(own - other) <= AUC)


def _auc(results: Results) -> float | None:
    found = ((results.get("attacks") or {}).get("auc") or {}).get("loss") or {}
    value = found.get("value")
    return None if value is None else float(value)


def _left(results: Results, target: Results | None, oracle: Results | None) -> Bar:
    name = "nothing measurably left"
    if target is None or oracle is None:
        return Bar(name, "forget", "needs --oracle", None)
    told = judge(results, {"target": target, "oracle": oracle})
    asked = [one for one in told.findings if one.kind == "forget" and one.answer is not None]
    left = [one.name for one in asked if one.answer is Answer.LEFT]
    if not asked or all(one.answer in (Answer.TOO_FEW, Answer.CANNOT_TELL) for one in asked):
        return Bar(name, "forget", "too few rows to tell", None)
    shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
    return Bar(name, "forget", f"left in: {shown}" if left else f"{len(asked)} measures", not left)


def _kept(part: str, results: Results, target: Results | None, least: float, option: str) -> Bar:
    now, label = _metric(part, results)
    before, other = (None, "") if target is None else _metric(part, target)
    name = f"{part} at {least} of the target's {_WORDS.get(label, 'ROUGE-L')}"
    if now is None or before is None or label != other or before <= 0:
        return Bar(name, "kept", f"needs {option}", None)
    return Bar(name, "kept", f"{now / before:.2f} ({before:.2f} → {now:.2f})", now / before >= least)


_WORDS = {"rougeL_recall": "ROUGE-L", "probability": "probability"}


def _metric(part: str, results: Results) -> tuple[float | None, str]:
    """ROUGE-L of a set, or its probability where no answers were written."""
    metrics = (results["sets"].get(part) or {}).get("metrics") or {}
    for label in _WORDS:
        value = (metrics.get(label) or {}).get("value")
        if value is not None:
            return float(value), label
    return None, ""


def _capability(results: Results, target: Results | None) -> Bar:
    name = f"capability within {POINTS:.0f} points"
    if target is None or not results.get("capability") or not target.get("capability"):
        return Bar(name, "kept", "needs pip install 'llm-forget[eval]'", None)
    now, before = (100 * float(one["capability"]["acc"]["value"]) for one in (results, target))
    return Bar(name, "kept", f"{now:.1f} %, before {before:.1f} %", before - now <= POINTS)


def headline(found: Sequence[Bar], known: bool | None) -> tuple[str, bool]:
    """One line, and whether every bar that could be measured was reached."""
    missed = {about: [one.name for one in found if one.about == about and one.reached is False] for about in _ABOUT}
    measured = sum(one.reached is not None for one in found)
    if known is False:
        return "NOTHING TO FORGET: the model did not know these rows; check --model and --forget", False
    if missed["forget"]:
        return f"NOT FORGOTTEN: missed: {'; '.join([*missed['forget'], *missed['kept']])}", False
    if missed["kept"]:
        return f"FORGOTTEN, WITH HARM: missed: {'; '.join(missed['kept'])}", False
    rest = len(found) - measured
    return f"FORGOTTEN: {measured} of {measured} bars reached" + (f"; {rest} not measured" if rest else ""), True


_ABOUT = ("forget", "kept")


def lines(found: Sequence[Bar]) -> Iterator[str]:
    """One line for each bar."""
    for one in found:
        yield f"{ {True: 'yes', False: 'NO', None: '–'}[one.reached]:4}{one.name}: {one.value}"
