"""Judge single figures of a result: how much of what the target knew is left, and whether other knowledge is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import expm1
from typing import Any

import numpy as np

from llm_forget.evaluation.aggregates.forget_quality import LEVEL, forget_quality
from llm_forget.evaluation.compare import column, same_set
from llm_forget.evaluation.equivalence import Answer, Equivalence, Kept, NonInferiority, equivalence
from llm_forget.evaluation.evidence import Entry, example_scores, forget_moments, loss_of
from llm_forget.evaluation.figures import Figure, Kind, Results, Side
from llm_forget.evaluation.intervals import mean_interval

MOSTLY, PARTLY = 0.8, 0.2  # shares of the way from the target to the oracle
_OWNERS = {"oracle": "the oracle", "target": "the model before unlearning"}


@dataclass(frozen=True)
class Finding:
    """The judgement of one figure.

    Attributes:
        part: the set or test, as the headline names it.
        kind: "forget", "kept" or "neutral".
        main: whether it is shown first.
        text: one or more sentences.
        name: the figure's name in sentences.
        answer: the answer of a forget figure or of a kept one; None if it was not judged.
        share: share of the way from the target to the oracle; None if unknown.
        needed: about how many rows would decide; None if decided or unknown.
    """

    part: str
    kind: Kind
    main: bool
    text: str
    name: str = ""
    answer: Answer | Kept | None = None
    share: float | None = None
    needed: int | None = None

    @property
    def level(self) -> int | None:
        """How much is forgotten, 0 (hardly) to 3 (as if never seen); None if the figure cannot show it."""
        if self.answer is Answer.AS_IF_NEVER_SEEN:
            return 3
        if self.answer is Answer.OVERDONE:
            return 2
        if self.answer is not Answer.LEFT:
            return None
        return 2 if self.share is None or self.share >= MOSTLY else 1 if self.share >= PARTLY else 0


@dataclass(frozen=True)
class Case:
    """A figure, the controls' entries for the same figure (by role), and all results.

    Attributes:
        figure: the figure.
        others: role → the control's entry.
        results: the model's result.
        controls: role → the control's result.
    """

    figure: Figure
    others: Mapping[str, Entry]
    results: Results
    controls: Mapping[str, Results]

    @property
    def own(self) -> Entry:
        """The model's entry."""
        return self.figure.entry

    @property
    def reference(self) -> str | None:
        """The control that the figure is compared with."""
        return next((role for role in self.figure.references if role in self.others), None)


def judge_figure(case: Case) -> Finding | None:
    """Judge one figure; None if there is nothing to compare it with."""
    figure = case.figure
    if case.own["value"] is None:
        text = f"{figure.name}: could not be scored."
        return Finding(figure.part, figure.kind, figure.main, text, figure.name) if case.own.get("n_nan") else None
    if case.reference is None:
        return None
    if figure.kind == "forget":
        return _forget(case)
    return _kept(case, case.reference) if figure.kind == "kept" else _neutral(case, case.reference)


def _forget(case: Case) -> Finding:
    figure = case.figure
    told = [f"{figure.name} is {shown(case.own)} ({_context(case)})."]
    answer = share = needed = None
    if "oracle" in case.others and "target" in case.others:
        found = _equivalence(case)
        if found is None:
            told.append("There is no interval, so it cannot be told how much is left.")
        else:
            answer, needed = found.answer, found.needed
            share = None if answer is Answer.CANNOT_TELL else 1 - found.ratio
            told.append(_told(found))
        if answer in (None, Answer.CANNOT_TELL):
            side = _difference(case, "oracle")
            if answer is not None and side and not _difference(case, "oracle", "target"):
                answer = Answer.LEFT if side == figure.bad else Answer.OVERDONE
                told.append(figure.above if side > 0 else figure.below)
    elif not (side := _difference(case, str(case.reference))):
        told.append(f"No measurable difference from {_OWNERS[str(case.reference)]}.")
    elif case.reference == "oracle":
        told.append(figure.above if side > 0 else figure.below)
    return Finding(
        figure.part, "forget", figure.main, " ".join([*told, *_sham(case)]), figure.name, answer, share, needed
    )


def _equivalence(case: Case) -> Equivalence | None:
    roles = ("oracle", "target")
    entries, results = [case.own], [case.results]
    entries += [case.others[role] for role in roles]
    results += [case.controls[role] for role in roles]
    moments = forget_moments(case.figure, entries, results)
    if moments is None:
        return None
    found = equivalence(moments)
    if found.answer is not Answer.CANNOT_TELL and (moments.b > 0) != (case.figure.bad > 0):
        # the target is beyond the oracle, so a way from one to the other says nothing about forgetting
        return Equivalence(Answer.CANNOT_TELL, found.ratio, found.low, found.high, found.rows)
    return found


def _told(found: Equivalence) -> str:
    if found.answer is Answer.CANNOT_TELL:
        return f"This metric cannot tell: on {found.rows} rows, target and oracle do not differ measurably in this direction."
    span = f"[{_percent(found.low)}, {_percent(found.high)}]"
    if found.answer is Answer.AS_IF_NEVER_SEEN:
        return f"As if never seen, within a fifth of what was there: {_percent(found.ratio)} is left {span}."
    if found.answer is Answer.LEFT:
        return f"{_percent(found.ratio)} of what the target knew is left {span}."
    if found.answer is Answer.OVERDONE:
        return (
            f"Overdone: {_percent(-found.ratio)} beyond the oracle, which can itself reveal what was removed "
            f"({_percent(found.ratio)} is left {span})."
        )
    return f"Too few rows to tell: {_percent(found.ratio)} is left {span} on {found.rows} rows{about(found.needed)}."


def about(needed: int | None) -> str:
    """The clause with the number of rows that would decide, or nothing."""
    return "" if needed is None else f"; about {needed:,} would do"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if abs(share) < 100 else "over 10,000 %" if share > 0 else "below −10,000 %"


def _kept(case: Case, role: str) -> Finding:
    """Judge a figure that must not change against the target, or against the oracle if there is no target."""
    figure, own, other = case.figure, case.own, case.others[role]
    results = [case.results, case.controls[role]]
    context = _context(case)
    pairs = example_scores(figure, results) if figure.source[:1] == ("set",) else None
    if pairs is not None:
        low, high = mean_interval(pairs[0] - pairs[1])
        change = float((pairs[0] - pairs[1]).mean())
        context += f", change {number(change, '+')} [{number(low, '+')}, {number(high, '+')}]"
    found = loss_of(figure, own, other, results)
    than = "before unlearning" if role == "target" else "the oracle"
    meaning = (
        "There is no interval, so it cannot be told whether it is kept."
        if found is None or np.isnan(found.loss)
        else _loss_told(figure, found, than)
    )
    answer = Kept.TOO_FEW if found is None else found.answer
    text = f"{figure.name} is {shown(own)} ({context}). {meaning}"
    needed = None if found is None else found.needed
    return Finding(figure.part, "kept", figure.main, text, figure.name, answer, needed=needed)


def _loss_told(figure: Figure, found: NonInferiority, than: str) -> str:
    def size(loss: float) -> str:
        loss = expm1(loss) if figure.source == ("perplexity",) and abs(loss) < 9 else loss
        return f"{100 * loss + 0.0:.{0 if abs(loss) >= 0.1 else 1}f}" + (" %" if figure.relative else " points")

    if found.answer is Kept.HARMED:
        return f"Harmed: {size(found.loss)} worse than {than}."
    if found.answer is Kept.KEPT and found.high > 0:
        return f"Kept: at most {size(found.high)} worse than {than}."
    if found.answer is Kept.KEPT:
        return f"Kept: better than {than}."
    span = "" if np.isnan(found.low) else f": a loss of {size(found.loss)} [{size(found.low)}, {size(found.high)}]"
    return f"Too few rows to tell whether it is kept{span} on {found.rows} rows{about(found.needed)}."


def _neutral(case: Case, role: str) -> Finding:
    figure, own = case.figure, case.own
    side = _difference(case, role)
    meaning = f"No measurable difference from {_OWNERS[role]}."
    if side:
        meaning = f"Compared with {_OWNERS[role]}: {figure.above if side > 0 else figure.below}"
    text = f"{figure.name} is {shown(own)} ({_context(case)}). {meaning}"
    return Finding(figure.part, "neutral", False, text, figure.name)


def _difference(case: Case, role: str, own: str | None = None) -> Side:
    """1 if the model (or the control ``own``) is measurably above a control, −1 below, 0 if the 95 % interval holds 0."""
    first = case.own if own is None else case.others[own]
    second = case.others[role]
    results = [case.results if own is None else case.controls[own], case.controls[role]]
    pairs = example_scores(case.figure, results)
    if pairs is not None:
        low, high = mean_interval(pairs[0] - pairs[1])
        return 1 if low > 0 else -1 if high < 0 else 0
    if not (_has_interval(first) and _has_interval(second)):
        return 0
    return 1 if first["low"] > second["high"] else -1 if first["high"] < second["low"] else 0


def _has_interval(entry: Entry) -> bool:
    return entry.get("low") is not None and entry.get("high") is not None


def _context(case: Case) -> str:
    """The controls' values, for the brackets after the model's value."""
    words = {"target": "before unlearning", "oracle": "oracle"}
    return ", ".join(f"{told} {shown(case.others[role])}" for role, told in words.items() if role in case.others)


def _sham(case: Case) -> list[str]:
    """The share of the change that the same recipe makes when it forgets other rows."""
    if "sham" not in case.others or "target" not in case.others:
        return []
    start, other, end = case.others["target"]["value"], case.others["sham"]["value"], case.own["value"]
    if end == start or not _difference(case, "target"):
        return [f"The sham run has {number(other)}."]
    return [
        f"The sham run, which forgot other rows, made {100 * (other - start) / (end - start):.0f} % of this change."
    ]


def judge_forget_quality(results: Results, controls: Mapping[str, Results]) -> Iterator[Finding]:
    """Judge the forget-quality tests, by the paired one if it was made."""
    for name, definition, test, before in _quality_tests(results, controls):
        told = [f"Forget quality of {name} ({definition} truth ratio): {test['verdict']}."]
        passes = None if before is None else _pvalue(before) is not None and not _differs(before)
        answer = None
        if before is not None and _pvalue(before) is not None:
            paired = before.get("paired_pvalue")
            pairs = "" if paired is None else f", paired p = {paired:.2g}"
            told.append(f"The target's own: D = {before['statistic']:.2f}, p = {before['pvalue']:.2g}{pairs}.")
        if _differs(test):
            answer = Answer.OVERDONE if test.get("direction") == "higher" else Answer.LEFT
        elif passes:
            answer = Answer.CANNOT_TELL
            told.append("The target passes this test too, so it cannot show forgetting.")
        yield Finding("forget quality", "forget", False, " ".join(told), f"{name}: forget quality", answer)


def _quality_tests(results: Results, controls: Mapping[str, Results]) -> Iterator[tuple[str, str, Entry, Entry | None]]:
    """Set, definition, the model's test and the target's: the stored ones, or computed from the truth ratios."""
    stored = results.get("forget_quality") or {}
    earlier = (controls.get("target") or {}).get("forget_quality") or {}
    for name, found in results["sets"].items():
        for definition in ("arithmetic", "geometric") if found["forget"] else ():
            label = f"truth_ratio_{definition}"
            test = stored.get(name, {}).get(definition) or _computed(results, results, controls, name, label)
            if test is None:
                continue
            before = test.get("target") or earlier.get(name, {}).get(definition)
            if before is None and "target" in controls:
                before = _computed(controls["target"], results, controls, name, label)
            yield name, definition, test, before


def _computed(
    one: Results, results: Results, controls: Mapping[str, Results], name: str, label: str
) -> dict[str, Any] | None:
    oracle = controls.get("oracle")
    if oracle is None or not all(other is results or same_set(results, other, name) for other in (one, oracle)):
        return None
    sets = [other["sets"][name] for other in (one, oracle)]
    rows = [other.get("examples") or {} for other in sets]
    if not rows[0] or list(rows[0]) != list(rows[1]):
        return None
    columns = [np.array(column(other, label)) for other in sets]
    return None if any(np.isnan(found).all() for found in columns) else vars(forget_quality(*columns))


def _pvalue(test: Entry) -> float | None:
    paired = test.get("paired_pvalue")
    found = test.get("pvalue") if paired is None or np.isnan(paired) else paired
    return None if found is None or np.isnan(found) else float(found)


def _differs(test: Entry) -> bool:
    found = _pvalue(test)
    return found is not None and found <= LEVEL


def judge_privleak(results: Results, *, decides: bool) -> Iterator[Finding]:
    """Judge PrivLeak, which already compares with the oracle.

    Args:
        results: the model's result.
        decides: whether it has an answer of its own. Its share of the target's is that of the Min-K attack's AUC, so it has
            none where that attack was judged.
    """
    entry = results.get("privleak")
    if not entry or entry["value"] is None:
        return
    inside = not _has_interval(entry) or entry["low"] <= 0 <= entry["high"]
    answer = None
    meaning = "No measurable difference from the oracle."
    if not inside and entry["value"] < 0:
        answer = Answer.LEFT
        meaning = "The forgotten rows are recognised as training data more easily than with the oracle."
    elif not inside:
        answer = Answer.OVERDONE
        meaning = "The forgotten rows score lower than with the oracle: they are forgotten too far."
    note = f" Note: {entry['note']}." if entry.get("note") else ""
    text = f"PrivLeak is {shown(entry)} %. {meaning}{note}"
    yield Finding("PrivLeak", "forget", False, text, "PrivLeak", answer if decides else None)


def shown(entry: Entry) -> str:
    """A value with its interval."""
    text = number(entry["value"])
    return f"{text} [{number(entry['low'])}, {number(entry['high'])}]" if _has_interval(entry) else text


def number(value: float, sign: str = "") -> str:
    """Format a number with three decimals, or one decimal from 10 on; ``sign="+"`` also shows the sign of positive numbers."""
    return f"{value:{sign}.{1 if abs(value) >= 10 else 3}f}"
