"""The verdict: the meaning of a result's numbers in plain words. No other module judges a model.

It reads result dictionaries and needs no torch. ``figures`` lists the numbers to judge, ``findings`` judges each, and this
module puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llm_forget.evaluation.compare import same_set
from llm_forget.evaluation.equivalence import LOSS, MARGIN, Answer, Kept
from llm_forget.evaluation.evidence import Entry, forget_moments
from llm_forget.evaluation.figures import Results, figures
from llm_forget.evaluation.findings import Case, Finding, about, judge_figure, judge_forget_quality, judge_privleak
from llm_forget.stop import NEVER_SEEN

RULE = (
    "Target: the model before unlearning. Oracle: a model that never saw the data to forget. Sham: the same recipe run on "
    "other data. What is left: R = mean(model − oracle) / mean(target − oracle) on the same questions, with its 90 % interval. "
    f"As if never seen: the interval lies within ±{MARGIN:.0%}. Left: it lies above 0. Overdone: it lies below 0. Otherwise "
    "there are too few rows to tell. A metric in which target and oracle do not differ measurably cannot tell. The headline "
    "says as if never seen only if every forget metric that can tell says so, attacks and forget quality included. Not known "
    "before: the target gives the answers no more probability than a model that never saw them. Kept: the 90 % interval of the "
    f"loss, paired by question, lies below {LOSS:.0%} of the value before. Harmed: the loss is above {LOSS:.0%} and its 95 % "
    "interval above 0. Otherwise there are too few rows to tell."
)
_COLLAPSED = 0.5  # above this share of empty or looping answers, forget figures mean nothing
_KNOWN = 0.05  # probability by which a target must exceed the oracle to have known the answers


@dataclass(frozen=True)
class Verdict:
    """The judgement of a result.

    Attributes:
        headline: one or more sentences.
        notes: remarks that apply to all findings.
        findings: one for each figure.
        level: 0 (hardly forgotten) to 3 (as if never seen); None if it cannot be judged or told.
        harmed: sets and tests with harm.
        too_far: sets and tests in which the model is beyond the oracle.
    """

    headline: str
    notes: list[str]
    findings: list[Finding]
    level: int | None = None
    harmed: tuple[str, ...] = ()
    too_far: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the model is as if it had never seen the data, and nothing is harmed."""
        return self.level == 3 and not self.harmed and not self.too_far

    @property
    def lines(self) -> list[str]:
        """Headline, notes, then the findings in the order forget, kept, neutral."""
        order = ("forget", "kept", "neutral")
        found = sorted(self.findings, key=lambda one: order.index(one.kind))
        return [self.headline, *self.notes, *(one.text for one in found)]


def verdict(
    results: Results, *, oracle: Results | None = None, target: Results | None = None, sham: Results | None = None
) -> list[str]:
    """Judge a result and return the lines of ``results["verdict"]``.

    Args:
        results: the unlearned model's result.
        oracle: this suite's result for a model that never saw the forget set.
        target: this suite's result for the model before unlearning.
        sham: this suite's result for the same recipe run on other rows.
    """
    given = {"oracle": oracle, "target": target, "sham": sham}
    return judge(results, {role: one for role, one in given.items() if one is not None}).lines


def judge(results: Results, controls: Mapping[str, Results] | None = None) -> Verdict:
    """Judge a result against its controls.

    A set is compared only if the control was measured on the same examples with the same encoding.

    Args:
        results: the unlearned model's result.
        controls: role (oracle, target, sham) → the control's result on the same suite. They take precedence over the
            controls in ``results``. Scores of single examples are used if both results have them.
    """
    settings = results.get("settings")
    inside = {role: {**one, "settings": settings} for role, one in (results.get("controls") or {}).items()}
    known = {**inside, **(controls or {})}
    by_role = {role: _entries(results, one) for role, one in known.items()}
    cases = []
    for figure in figures(results):
        others = {role: entries[figure.name] for role, entries in by_role.items() if figure.name in entries}
        cases.append(Case(figure, others, results, known))
    findings = [found for case in cases if (found := judge_figure(case)) is not None]
    attacked = any(one.part == "min_k attack" and one.answer is not None for one in findings)
    findings += [*judge_forget_quality(results, known), *judge_privleak(results, decides=not attacked)]
    collapsed = list(_collapsed(results))
    notes = [*collapsed, *_not_compared(results, known)]
    if "oracle" not in known and "target" in known:
        notes.append("There is no oracle, so only the change is shown, not whether it is large enough.")
    start, level = _start(findings, cases, known, bool(collapsed))
    harmed = _parts(one for one in findings if one.answer is Kept.HARMED)
    too_far = _parts(one for one in findings if one.answer is Answer.OVERDONE)
    return Verdict(f"{start} {_rest(findings, harmed)}", notes, findings, level, harmed, too_far)


def _entries(results: Results, control: Results) -> dict[str, Entry]:
    """Figure → entry of a control, for figures that can be compared."""
    return {
        figure.name: figure.entry
        for figure in figures(control)
        if figure.entry["value"] is not None
        and all(name not in results["sets"] or same_set(results, control, name) for name in figure.sets)
    }


def _not_compared(results: Results, controls: Mapping[str, Results]) -> Iterator[str]:
    for role, control in controls.items():
        for name in results["sets"]:
            if not same_set(results, control, name):
                yield f"The {role} was not measured on the same {name} set in the same way, so this set is not compared with it."


def _collapsed(results: Results) -> Iterator[str]:
    for name, found in results["sets"].items():
        entry = found["metrics"].get("collapse")
        if entry and entry["value"] is not None and entry["value"] > _COLLAPSED:
            yield (
                f"{name}: {100 * entry['value']:.0f} % of the answers are empty or repeat themselves. The model has "
                "collapsed, so its forget figures say nothing about forgetting."
            )


def _start(
    findings: list[Finding], cases: list[Case], controls: Mapping[str, Results], collapsed: bool
) -> tuple[str, int | None]:
    """The headline's first sentences, how much is forgotten, and its level."""
    if collapsed:
        return "Collapsed: most answers of a set are empty or repeat themselves.", None
    judged = [one for one in findings if one.kind == "forget" and one.answer not in (None, Answer.CANNOT_TELL)]
    missing = [role for role in ("target", "oracle") if role not in controls]
    if (missing or all(one.share is None for one in judged)) and _not_known_before(cases):
        start = (
            "Not known before: the model before unlearning gave the answers no more probability than a model that never "
            "saw them, so there was nothing to forget."
        )
        return f"{start} {_amount(judged)[0]}".strip(), None
    if missing:
        return f"Not judged: no results of the {' or the '.join(missing)} on the same suite to compare with.", None
    if not judged:
        return "Not judged: no forget metric can tell the target from the oracle on these rows.", None
    return _amount(judged)


def _amount(judged: list[Finding]) -> tuple[str, int | None]:
    """How much is forgotten, from every figure that can tell: the worst one decides."""
    by_answer = {answer: [one for one in judged if one.answer is answer] for answer in Answer}
    left, beyond = by_answer[Answer.LEFT], by_answer[Answer.OVERDONE]
    few, never = by_answer[Answer.TOO_FEW], by_answer[Answer.AS_IF_NEVER_SEEN]
    told, level = [], None
    if left:
        level = min(one.level for one in left if one.level is not None)
        sized = [one for one in left if one.share is not None]
        if sized:
            worst = max(sized, key=lambda one: 1 - (one.share or 0.0))
            told.append(f"{100 * (1 - (worst.share or 0.0)):.0f} % of what the target knew is left ({worst.name}).")
            left = [one for one in left if one.part != worst.part]
        if left:
            told.append(f"Traces remain: {', '.join(_parts(left))}.")
    elif few:
        told.append(f"Too few rows to tell how much is left ({_listed(few)}).")
    elif beyond:
        level = 2
    elif never:
        level = 3
        told.append("As if never seen: in every forget metric that can tell, within a fifth of what was there.")
    if beyond:
        parts = ", ".join(_parts(beyond))
        told.append(f"Overdone: further than the oracle, which can itself reveal what was removed ({parts}).")
    return " ".join(told), level


def _not_known_before(cases: list[Case]) -> bool:
    """Whether no forget set's answers were known to the target, by their probability."""
    found = [
        _unknown_to_target(case)
        for case in cases
        if case.figure.kind == "forget" and case.figure.source[2:] == ("probability",) and "target" in case.others
    ]
    return bool(found) and all(found)


def _unknown_to_target(case: Case) -> bool:
    target, oracle = case.others["target"], case.others.get("oracle")
    if oracle is None:
        return float(target["value"] if target.get("high") is None else target["high"]) <= NEVER_SEEN
    entries = [target, oracle, target]
    moments = forget_moments(case.figure, entries, [case.controls[role] for role in ("target", "oracle", "target")])
    return moments is not None and moments.b + 2 * moments.var_b**0.5 < _KNOWN


def _rest(findings: list[Finding], harmed: tuple[str, ...]) -> str:
    """The headline's last sentences: the harm to everything else."""
    judged = [one for one in findings if one.kind == "kept" and one.answer is not None]
    main = [one for one in judged if one.main] or judged
    if not main:
        return "Harm to other knowledge was not judged."
    few = [one for one in main if one.answer is Kept.TOO_FEW and one.part not in harmed]
    unsure = _parts(few)
    kept = [part for part in _parts(main) if part not in harmed and part not in unsure]
    told = []
    if harmed:
        told.append(f"Harmed: {', '.join(harmed)}.")
    if few:
        told.append(f"Too few rows to tell whether it is kept: {_listed(few)}.")
    if kept:
        told.append(f"Kept within {LOSS:.0%}: {', '.join(kept)}.")
    return " ".join(told)


def _listed(few: list[Finding]) -> str:
    """The parts, and the largest number of rows that one of them needs."""
    needed = [one.needed for one in few]
    known = [one for one in needed if one is not None]
    return f"{', '.join(_parts(few))}{about(max(known) if len(known) == len(needed) else None)}"


def _parts(findings: Iterable[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.part for one in findings))
