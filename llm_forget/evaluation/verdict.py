"""The verdict: the meaning of a result's numbers in plain words. No other module judges a model.

It reads result dictionaries and needs no torch. ``figures`` lists the numbers to judge; this module has the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.evaluation.compare import same_set
from llm_forget.evaluation.figures import Figure, Kind, Results, Side, figures
from llm_forget.evaluation.pairs import paired_change

Entry = Mapping[str, Any]

MOSTLY, PARTLY = 0.8, 0.2  # shares of the way from the target to the oracle
LOSS = 0.05  # relative loss from which a measurable change counts as harm
RULE = (
    "Target: the model before unlearning. Oracle: a model that never saw the data to forget. Sham: the same recipe run on "
    "other data. Two figures differ measurably if their 95 % intervals do not touch. Forgotten: no main forget figure differs "
    f"measurably from the oracle, and each is at least {MOSTLY:.0%} of the way from the target to the oracle. Mostly "
    f"forgotten: at least {MOSTLY:.0%} of the way; partly: at least {PARTLY:.0%}. A figure in which target and oracle do not "
    f"differ measurably shows nothing. Harmed: measurably worse than the target, or worse by more than {LOSS:.0%} with a 95 % "
    "interval of the paired change that excludes zero."
)
_LEVELS = ("Hardly forgotten", "Partly forgotten", "Mostly forgotten", "Forgotten")
_OWNERS = {"oracle": "the oracle", "target": "the model before unlearning"}
_COLLAPSED = 0.5  # above this share of empty or looping answers, forget figures mean nothing


@dataclass(frozen=True)
class Finding:
    """The judgement of one figure.

    Attributes:
        part: the set or test, as the headline names it.
        kind: "forget", "kept" or "neutral".
        main: whether the headline depends on it.
        text: one or more sentences.
        level: how much is forgotten, 0 (hardly) to 3 (forgotten); None if the figure cannot show it.
        share: share of the way from the target to the oracle; None if unknown.
        bad: whether measurably more is left than in the oracle (forget), or something is harmed (kept).
        slight: whether the harm is at most ``LOSS``.
        too_far: whether the model is measurably beyond the oracle.
        unsure: whether there is a loss above ``LOSS`` that these examples cannot confirm.
    """

    part: str
    kind: Kind
    main: bool
    text: str
    level: int | None = None
    share: float | None = None
    bad: bool = False
    slight: bool = False
    too_far: bool = False
    unsure: bool = False


@dataclass(frozen=True)
class Verdict:
    """The judgement of a result.

    Attributes:
        headline: one or two sentences.
        notes: remarks that apply to all findings.
        findings: one for each figure.
        level: 0 (hardly forgotten) to 3 (forgotten); None if it cannot be judged.
        harmed: sets and tests with measurable harm.
        too_far: sets in which the model is measurably beyond the oracle.
    """

    headline: str
    notes: list[str]
    findings: list[Finding]
    level: int | None = None
    harmed: tuple[str, ...] = ()
    too_far: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether most is forgotten, no set is beyond the oracle, and nothing is measurably harmed."""
        return self.level is not None and self.level >= 2 and not self.harmed and not self.too_far

    @property
    def lines(self) -> list[str]:
        """Headline, notes, then the findings in the order forget, kept, neutral."""
        order = ("forget", "kept", "neutral")
        found = sorted(self.findings, key=lambda one: order.index(one.kind))
        return [self.headline, *self.notes, *(one.text for one in found)]


@dataclass(frozen=True)
class _Case:
    """A figure, the controls' entries for the same figure (by role), and all results."""

    figure: Figure
    others: Mapping[str, Entry]
    results: Results
    controls: Mapping[str, Results]

    @property
    def own(self) -> Entry:
        return self.figure.entry

    @property
    def reference(self) -> str | None:
        return next((role for role in self.figure.references if role in self.others), None)


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
    findings = []
    for figure in figures(results):
        others = {role: entries[figure.name] for role, entries in by_role.items() if figure.name in entries}
        finding = _finding(_Case(figure, others, results, known))
        if finding is not None:
            findings.append(finding)
    findings += [*_forget_quality(results, known), *_privleak(results)]
    collapsed = list(_collapsed(results))
    notes = [*collapsed, *_not_compared(results, known)]
    if "oracle" not in known and "target" in known:
        notes.append("There is no oracle, so only the change is shown, not whether it is large enough.")
    return _with_headline(findings, notes, known, bool(collapsed))


def _entries(results: Results, control: Results) -> dict[str, Entry]:
    """Figure → entry of a control, for figures that can be compared."""
    return {
        figure.name: figure.entry
        for figure in figures(control)
        if figure.entry["value"] is not None
        and (
            figure.place is None
            or figure.place[0] not in results["sets"]
            or same_set(results, control, figure.place[0])
        )
    }


def _not_compared(results: Results, controls: Mapping[str, Results]) -> Iterator[str]:
    for role, control in controls.items():
        for name in results["sets"]:
            if not same_set(results, control, name):
                yield f"The {role} was not measured on the same {name} set in the same way, so this set is not compared with it."


def _finding(case: _Case) -> Finding | None:
    figure = case.figure
    if case.own["value"] is None:
        text = f"{figure.name}: could not be scored."
        return Finding(figure.part, figure.kind, figure.main, text) if case.own.get("n_nan") else None
    if case.reference is None:
        return None
    if figure.kind == "forget":
        return _forget(case)
    return _kept(case) if figure.kind == "kept" else _neutral(case)


def _forget(case: _Case) -> Finding:
    """Judge a forget figure against the oracle.

    It counts as forgotten if it does not differ measurably from the oracle and at least ``MOSTLY`` of the way is done, or if
    it is beyond the oracle. The interval alone is not enough: with few examples, wide intervals touch although much is left.
    """
    figure, own, others = case.figure, case.own, case.others
    told = [f"{figure.name} is {_shown(own)} ({_context(case)})."]
    target, oracle = others.get("target"), others.get("oracle")
    if oracle is None:
        if _side(own, others[str(case.reference)]) == 0:
            told.append("No measurable change.")
        return Finding(figure.part, "forget", figure.main, " ".join([*told, *_sham(case)]))
    side = _side(own, oracle)
    level = share = None
    if target is not None and _side(target, oracle) == figure.bad:
        share = (target["value"] - own["value"]) / (target["value"] - oracle["value"])
        level = _level(share, side, figure.bad)
    if side:
        told.append(figure.above if side > 0 else figure.below)
    elif level in (None, 3):
        told.append("No measurable difference from the oracle.")
    else:
        told.append("No measurable difference from the oracle, but too few examples to be sure.")
    if share is not None:
        told.append(f"{100 * min(1.0, max(0.0, share)):.0f} % of the way from the target to the oracle.")
    elif target is not None:
        told.append(
            "Target and oracle do not differ measurably in this direction, so this figure cannot show forgetting."
        )
    told += [*_no_interval(own, oracle), *_sham(case)]
    too_far = side == -figure.bad
    return Finding(
        figure.part, "forget", figure.main, " ".join(told), level, share, bad=side == figure.bad, too_far=too_far
    )


def _level(share: float, side: Side, bad: Side) -> int:
    if side == -bad or (side == 0 and share >= MOSTLY):
        return 3
    return 2 if share >= MOSTLY else 1 if share >= PARTLY else 0


def _kept(case: _Case) -> Finding:
    """Judge a figure that must not change against the target, or against the oracle if there is no target."""
    figure, own, role = case.figure, case.own, str(case.reference)
    other = case.others[role]
    change = own["value"] - other["value"]
    loss = figure.bad * change / abs(other["value"]) if other["value"] else 0.0
    paired = _paired(case, role) if figure.main else None
    sure = paired is not None and (paired[1] < 0 if figure.bad < 0 else paired[0] > 0)
    apart = _side(own, other) == figure.bad
    if not (_has_interval(own) and _has_interval(other)):
        apart = apart and loss > LOSS
    harmed = apart or (sure and loss > LOSS)
    unsure = figure.main and not harmed and loss > LOSS
    context = _context(case)
    if paired is not None:
        context += f", change {number(change, '+')} [{number(paired[0], '+')}, {number(paired[1], '+')}]"
    than = "before unlearning" if role == "target" else "the oracle"
    if harmed:
        size = f"{100 * loss:.0f} % worse than {than}" if other["value"] else f"worse than {than}"
        meaning = f"{'Harmed' if loss > LOSS or not other['value'] else 'Slightly harmed'}: {size}."
    elif unsure:
        meaning = f"A loss of {100 * loss:.0f} % is possible, but there are too few examples to be sure."
    elif _side(own, other) == -figure.bad:
        meaning = f"Better than {than}."
    else:
        meaning = "No measurable loss."
    told = [f"{figure.name} is {_shown(own)} ({context}).", meaning, *_no_interval(own, other)]
    slight = harmed and bool(other["value"]) and loss <= LOSS
    return Finding(figure.part, "kept", figure.main, " ".join(told), bad=harmed, slight=slight, unsure=unsure)


def _neutral(case: _Case) -> Finding:
    figure, own, role = case.figure, case.own, str(case.reference)
    side = _side(own, case.others[role])
    meaning = f"No measurable difference from {_OWNERS[role]}."
    if side:
        meaning = f"Compared with {_OWNERS[role]}: {figure.above if side > 0 else figure.below}"
    told = [f"{figure.name} is {_shown(own)} ({_context(case)}).", meaning, *_no_interval(own, case.others[role])]
    return Finding(figure.part, "neutral", False, " ".join(told))


def _paired(case: _Case, role: str) -> tuple[float, float] | None:
    if case.figure.place is None:
        return None
    name, label = case.figure.place
    return paired_change(case.results["sets"][name], case.controls[role]["sets"][name], label)


def _side(own: Entry, other: Entry) -> Side:
    """1 if measurably above, −1 if measurably below, 0 if the intervals touch; without an interval, the value is used."""
    own_low, own_high = (own["low"], own["high"]) if _has_interval(own) else (own["value"], own["value"])
    low, high = (other["low"], other["high"]) if _has_interval(other) else (other["value"], other["value"])
    return 1 if own_low > high else -1 if own_high < low else 0


def _has_interval(entry: Entry) -> bool:
    return entry.get("low") is not None and entry.get("high") is not None


def _no_interval(*entries: Entry) -> list[str]:
    missing = not all(map(_has_interval, entries))
    return ["There is no interval, so the values are compared directly."] if missing else []


def _context(case: _Case) -> str:
    """The controls' values, for the brackets after the model's value."""
    shown = {"target": "before unlearning", "oracle": "oracle"}
    return ", ".join(f"{words} {_shown(case.others[role])}" for role, words in shown.items() if role in case.others)


def _sham(case: _Case) -> list[str]:
    """The share of the change that the same recipe makes when it forgets other rows."""
    if "sham" not in case.others or "target" not in case.others:
        return []
    start, other, end = case.others["target"], case.others["sham"]["value"], case.own["value"]
    if _side(case.own, start) == 0 or end == start["value"]:
        return [f"The sham run has {number(other)}."]
    share = (other - start["value"]) / (end - start["value"])
    return [f"The sham run, which forgot other rows, made {100 * share:.0f} % of this change."]


def _collapsed(results: Results) -> Iterator[str]:
    for name, found in results["sets"].items():
        entry = found["metrics"].get("collapse")
        if entry and entry["value"] is not None and entry["value"] > _COLLAPSED:
            yield (
                f"{name}: {100 * entry['value']:.0f} % of the answers are empty or repeat themselves. The model has "
                "collapsed, so its forget figures say nothing about forgetting."
            )


def _forget_quality(results: Results, controls: Mapping[str, Results]) -> Iterator[Finding]:
    """Judge the forget-quality test, which already compares with the oracle."""
    before = (controls.get("target") or {}).get("forget_quality") or {}
    for name, tests in (results.get("forget_quality") or {}).items():
        for definition, test in tests.items():
            told = [f"Forget quality of {name} ({definition} truth ratio): {test['verdict']}."]
            earlier = (before.get(name) or {}).get(definition, {}).get("pvalue")
            if earlier is not None and earlier > 0.05:
                told.append(f"The target passes this test too (p = {earlier:.2g}), so it cannot show forgetting.")
            differs = test.get("pvalue") is not None and test["pvalue"] <= 0.05
            left = differs and test.get("direction") != "higher"
            too_far = differs and not left
            yield Finding("forget quality", "forget", False, " ".join(told), bad=left, too_far=too_far)


def _privleak(results: Results) -> Iterator[Finding]:
    """Judge PrivLeak, which already compares with the oracle."""
    entry = results.get("privleak")
    if not entry or entry["value"] is None:
        return
    inside = not _has_interval(entry) or entry["low"] <= 0 <= entry["high"]
    left, too_far = not inside and entry["value"] < 0, not inside and entry["value"] > 0
    meaning = (
        "The forgotten rows are recognised as training data more easily than with the oracle."
        if left
        else "The forgotten rows score lower than with the oracle: they are forgotten too far."
        if too_far
        else "No measurable difference from the oracle."
    )
    note = f" Note: {entry['note']}." if entry.get("note") else ""
    text = f"PrivLeak is {_shown(entry)} %. {meaning}{note}"
    yield Finding("PrivLeak", "forget", False, text, bad=left, too_far=too_far)


def _with_headline(
    findings: list[Finding], notes: list[str], controls: Mapping[str, Results], collapsed: bool
) -> Verdict:
    main = [one for one in findings if one.kind == "forget" and one.main]
    judged = [one.level for one in main if one.level is not None]
    level = None if collapsed else min(judged, default=None)
    traces = _parts(one for one in findings if one.kind == "forget" and not one.main and one.bad)
    if level == 3 and traces:
        level = 2
    too_far = _parts(one for one in main if one.too_far)
    harmed = _parts(one for one in findings if one.kind == "kept" and one.bad)
    start = _start(level, main, traces, too_far, controls, collapsed)
    return Verdict(f"{start} {_rest(findings, harmed)}".strip(), notes, findings, level, harmed, too_far)


def _start(
    level: int | None,
    main: list[Finding],
    traces: tuple[str, ...],
    too_far: tuple[str, ...],
    controls: Mapping[str, Results],
    collapsed: bool,
) -> str:
    """The headline's first sentence: how much is forgotten."""
    if collapsed:
        return "Collapsed: most answers of a set are empty or repeat themselves."
    missing = [role for role in ("target", "oracle") if role not in controls]
    if missing:
        return f"Not judged: no results of the {' or the '.join(missing)} on the same suite to compare with."
    if level is None:
        return (
            "Not judged: the target and the oracle do not differ measurably in any main forget figure that both have."
        )
    if level == 3:
        if too_far:
            return f"Forgotten further than in the oracle, which can itself reveal what was removed ({', '.join(too_far)})."
        return "Forgotten: no measurable difference from a model that never saw the data."
    least = min(one.share for one in main if one.share is not None)
    start = f"{_LEVELS[level]}: {100 * min(1.0, max(0.0, least)):.0f} % of the way from the target to the oracle."
    return f"{start} Traces remain: {', '.join(traces)}." if traces and level == 2 else start


def _rest(findings: list[Finding], harmed: tuple[str, ...]) -> str:
    """The headline's second sentence: the harm to everything else."""
    kept = [one for one in findings if one.kind == "kept"]
    if not kept:
        return "Harm to other knowledge was not judged."
    strong = _parts(one for one in kept if one.bad and not one.slight)
    slight = tuple(part for part in harmed if part not in strong)
    unsure = tuple(part for part in _parts(one for one in kept if one.unsure) if part not in harmed)
    told = []
    if strong:
        told.append(f"Harmed: {', '.join(strong)}.")
    if slight:
        told.append(f"Slightly harmed: {', '.join(slight)}.")
    if unsure:
        told.append(f"Possibly harmed, but too few examples to be sure: {', '.join(unsure)}.")
    return " ".join(told) or "No harm to other knowledge was found."


def _parts(findings: Iterator[Finding]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.part for one in findings))


def _shown(entry: Entry) -> str:
    shown = number(entry["value"])
    return f"{shown} [{number(entry['low'])}, {number(entry['high'])}]" if _has_interval(entry) else shown


def number(value: float, sign: str = "") -> str:
    """Format a number with three decimals, or one decimal from 10 on; ``sign="+"`` also shows the sign of positive numbers."""
    return f"{value:{sign}.{1 if abs(value) >= 10 else 3}f}"
