"""The grade of an audit in plain words: how far forgetting held, what was tried and not tried, what the grade does not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.matrix import NO_ORACLE, NOT_RUN, Cell, broken
from llm_forget.evaluation.equivalence import MARGIN, Answer

# Grade → what it means.
GRADES = {
    None: "not forgotten: the plain question brings the answers back",
    "E0": "suppression: the plain question brings back no answers, but something else does",
    "E1": "behavioural: no way of asking that was tried brings the answers back",
    "E2": "oracle-relative: answers, log-probs and hidden states are as those of a model that never saw the data",
    "E3": "durable: it stays so after rounding, relearning and changes of the weights",
    "E4": "exact: the weights are those of a model that was trained without the data",
}
_ASKING, _LOOKING, _CHANGING = ("asking", "text"), ("inside", "statistics"), ("training", "weights")
GROUPS = {
    "asking": "questions in other words, samples, chains of questions",
    "text": "the beginning of the answer is given",
    "inside": "hidden states are read or moved",
    "statistics": "log-probs of members and non-members are compared",
    "training": "the model is trained again on a little data",
    "weights": "weights or adapter are changed",
}
_NEVER_TRIED = (
    "prompts optimised with gradients, attackers with larger budgets or with other copies of the model",
    "longer fine-tuning, other rates and other data than those of the relearning attacks",
    "knowledge that follows from the rows, but is in none of them",
)
DOES_NOT_SHOW = (
    "A grade holds for these rows, attacks, forms and this budget. An attack that fails here may work with more effort.",
    "The oracle is one model from one training run; another one would give slightly different numbers.",
    "Earlier checkpoints, the base under an adapter, caches and backups may still hold the data.",
    "It is evidence about behaviour. It does not prove erasure and is no legal assessment.",
)


@dataclass(frozen=True)
class Grade:
    """The grade of an audit.

    Attributes:
        level: E0 to E4; None if the data are not forgotten, or if there is no oracle to grade with (see ``words``).
        words: the grade in plain words.
        broken_by: the cells that leak, the worst first: attack, form and what is left.
        next_step: what stands between this grade and the next one.
        tried: what was tried, by group of attacks.
        not_tried: what was not tried, and why.
        does_not_show: what the grade does not show.
    """

    level: str | None
    words: str
    broken_by: tuple[str, ...]
    next_step: str
    tried: tuple[str, ...]
    not_tried: tuple[str, ...]
    does_not_show: tuple[str, ...] = DOES_NOT_SHOW


def grade(cells: Sequence[Cell], *, same_as_oracle: bool = False, missing: Mapping[str, str] | None = None) -> Grade:
    """Grade a matrix.

    E0: the plain question gives nothing in the first form. E1: no attack of the groups asking and text leaks in any form whose
    weights were not rounded. E2: in these forms, the groups inside and statistics do not leak either, nothing is overdone, and at
    least half of the cells that can tell are "as if never seen". E3: no cell of the matrix leaks, 4-bit forms and relearning
    among them. E4: same weights as the oracle. A cell leaks if R is at least 20 % and above 0 with Holm's correction over all
    cells.

    Args:
        cells: the matrix, forms in order: the first is the one that is served.
        same_as_oracle: the weights are equal to the oracle's.
        missing: what else was not tried → why.
    """
    run = [one for one in cells if one.answer != NOT_RUN]
    leaking = broken(run)
    names = tuple(f"{one.attack} on {one.form}: {one.left:.0%} of what the target knew" for one in leaking)
    tried, not_tried = _tried(run), _not_tried(cells, missing or {})
    if not run or all(one.answer in (NO_ORACLE, Answer.CANNOT_TELL.value) for one in run):
        why = "there is no oracle" if any(one.answer == NO_ORACLE for one in run) or not run else "no attack can tell"
        words = f"no grade: {why}, so nothing says how a model answers that never saw the data"
        return Grade(None, words, (), "give the run of an oracle with --oracle", tried, not_tried)
    level, step = _level(run, leaking, same_as_oracle)
    return Grade(level, GRADES[level], names, step, tried, not_tried)


def _level(run: Sequence[Cell], leaking: Sequence[Cell], same: bool) -> tuple[str | None, str]:
    if same:
        return "E4", ""
    whole = [one for one in run if not _is_rounded(one.form)]
    leaks = {(one.attack, one.form) for one in leaking}
    if any(one.attack == "greedy" and (one.attack, one.form) in leaks for one in whole):
        return None, "the plain question still brings back answers"
    asked = [one for one in leaking if one.group in _ASKING and not _is_rounded(one.form)]
    if asked:
        return "E0", f"E1 fails: {_named(asked)}"
    seen = [one for one in whole if one.group not in _CHANGING]
    looked = [one for one in leaking if one.group in _LOOKING and not _is_rounded(one.form)]
    overdone = [one for one in seen if one.answer == Answer.OVERDONE.value and (one.left or 0) <= -MARGIN]
    telling = [one for one in seen if one.answer != Answer.CANNOT_TELL.value]
    same_as = [one for one in telling if one.answer == Answer.AS_IF_NEVER_SEEN.value]
    if looked:
        return "E1", f"E2 fails: {_named(looked)}"
    if overdone:
        return (
            "E1",
            f"E2 fails: further from the target than the oracle is ({_named(overdone)}), which can be told as well",
        )
    if 2 * len(same_as) < len(telling):
        return "E1", f"E2 is open: {len(telling) - len(same_as)} of {len(telling)} cells have too few rows to tell"
    if leaking:
        return "E2", f"E3 fails: {_named(leaking)}"
    lacking = _lacking(run)
    if lacking:
        return "E2", f"E3 is open: {lacking}"
    return "E3", "E4 needs training without the data; no test of behaviour can show it"


def _lacking(run: Sequence[Cell]) -> str:
    """What a matrix lacks for E3."""
    forms = {one.form for one in run}
    lacks = []
    if not forms & {"nf4", "int4_rtn", "gguf_q4"}:
        lacks.append("no 4-bit form was tried")
    if not any(one.group == "training" for one in run):
        lacks.append("no relearning was tried")
    return " and ".join(lacks)


def _is_rounded(form: str) -> bool:
    return form in FORMS and FORMS[form].quantiser is not None


def _named(cells: Sequence[Cell]) -> str:
    worst = max(cells, key=lambda one: abs(one.left or 0.0))
    more = len({one.attack for one in cells}) - 1
    others = f" and {more} more attack{'s' if more > 1 else ''}" if more > 0 else ""
    return f"{worst.attack} on {worst.form} (R = {worst.left:.2f}){others}"


def _tried(run: Sequence[Cell]) -> tuple[str, ...]:
    lines = []
    for group, words in GROUPS.items():
        attacks = sorted({one.attack for one in run if one.group == group})
        if attacks:
            lines.append(f"{words}: {', '.join(attacks)}")
    forms = list(dict.fromkeys(one.form for one in run))
    return (*lines, f"forms: {', '.join(forms)}") if forms else tuple(lines)


def _not_tried(cells: Sequence[Cell], missing: Mapping[str, str]) -> tuple[str, ...]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in cells:
        if one.answer == NOT_RUN:
            reasons.setdefault((one.attack, one.why), []).append(one.form)
    ran = {one.form for one in cells if one.answer != NOT_RUN}
    lines = [f"{attack} on {', '.join(forms)}: {why}" for (attack, why), forms in reasons.items()]
    lines += [f"{what}: {why}" for what, why in missing.items()]
    lines += [f"{words} ({group})" for group, words in GROUPS.items() if not any(one.group == group for one in cells)]
    left = [name for name in FORMS if name not in ran and name not in missing]
    return (*lines, *([f"forms: {', '.join(left)}"] if left else []), *_NEVER_TRIED)
