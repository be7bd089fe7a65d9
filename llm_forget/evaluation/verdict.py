"""The verdict: on which side of the oracle each figure lies, and what that means in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]

# What a figure says of a forget set beside the oracle's, when it lies above and when it lies below.
_FORGOTTEN = {
    "low": (
        "more of it is left than in a model that never saw it",
        "below a model that never saw it: suppressed, which can be seen too",
    ),
    "high": (
        "further than a model that never saw it: overdone, which can be seen too",
        "more of it is left than in a model that never saw it",
    ),
}
# The same for what is no measure of forgetting; the last word of the metric's name decides.
_DAMAGE = {
    "collapse": ("more answers are empty or loop: damage, not forgetting", "fewer answers are empty or loop"),
    "repetition": ("answers repeat themselves more: damage, not forgetting", "answers repeat themselves less"),
    "refusal": ("it refuses more often than a model that never saw it", "it refuses less often"),
    "entropy": ("it is less sure of every token", "it is surer of every token"),
}
_KEPT = ("kept at least as well", "damaged")
_KEPT_LOW = ("damaged", "kept at least as well")
# Metrics of which a low value is good in a set that is kept.
_LOW_IS_GOOD = ("kl_to_target",)


@dataclass(frozen=True)
class _Figure:
    """One number of a result.

    Attributes:
        name: what it is called.
        entry: its ``value``, ``low``, ``high`` and counts.
        above: what it means to lie above the model that it is compared with.
        below: what it means to lie below.
        forget: whether it is about forgetting, so that the oracle is where it should be.
    """

    name: str
    entry: Mapping[str, Any]
    above: str
    below: str
    forget: bool


def verdict(
    results: Results, *, oracle: Results | None = None, target: Results | None = None, sham: Results | None = None
) -> list[str]:
    """Say in plain words what the figures of a result mean.

    Two figures count as told apart when their 95 % intervals do not touch, which is careful: intervals that touch may
    still belong to different values. Figures without an interval are compared as they are, and the line says so.

    Args:
        results: what ``run_suite`` gave for the unlearned model.
        oracle: the same suite's result for a model that never saw the forget set; None gives one line that says so.
        target: for the model before unlearning: how far the figures have come, and what was kept.
        sham: for the same recipe run on other rows: how much of a change is the recipe's and not the forgetting's.

    Returns:
        Lines, one a figure; the first are about what must be forgotten, the rest about what must be kept.
    """
    lines = [] if oracle is not None else ["no oracle: how low is low enough cannot be said, only how far it moved"]
    figures = list(_figures(results))
    known = {
        role: _entries(one) for role, one in (("oracle", oracle), ("target", target), ("sham", sham)) if one is not None
    }
    for figure in sorted(figures, key=lambda one: not one.forget):
        line = _line(figure, known)
        if line:
            lines.append(line)
    return [*lines, *_collapsed(results), *_tests(results)]


def _figures(results: Results) -> Iterator[_Figure]:
    for name, found in results["sets"].items():
        forget = bool(found["forget"])
        for label, entry in found["metrics"].items():
            above, below = _meanings(label, entry["forgotten"], forget)
            yield _Figure(f"{name} {label}", entry, above, below, forget)
    for label, entry in ((results.get("attacks") or {}).get("auc") or {}).items():
        above = "its members stand out more than in a model that never saw them"
        below = "its members stand out the other way, which gives them away too"
        yield _Figure(f"{label} attack's AUC", entry, above, below, True)
    for name, found in (results.get("leak") or {}).items():
        for k, entry in found["at"].items():
            yield _Figure(f"{name} leak@{k}", entry, *_FORGOTTEN["low"], True)
    for definition, entry in (results.get("model_utility") or {}).items():
        yield _Figure(f"model utility ({definition})", entry, *_KEPT, False)
    if results.get("perplexity"):
        yield _Figure("perplexity", results["perplexity"], *_KEPT_LOW, False)
    if results.get("kl_to_target"):
        yield _Figure("KL to the target on text", results["kl_to_target"], *_KEPT_LOW, False)
    if results.get("capability"):
        yield _Figure(f"{results['capability']['task']} accuracy", results["capability"]["acc"], *_KEPT, False)


def _entries(results: Results) -> dict[str, Mapping[str, Any]]:
    return {figure.name: figure.entry for figure in _figures(results)}


def _meanings(label: str, forgotten: str, forget: bool) -> tuple[str, str]:
    damage = next((words for name, words in _DAMAGE.items() if label.startswith(name)), None)
    if damage is not None:
        return damage
    if forget and forgotten in _FORGOTTEN:
        return _FORGOTTEN[forgotten]
    if forget:
        return "higher than in a model that never saw it", "lower than in a model that never saw it"
    return _KEPT_LOW if label in _LOW_IS_GOOD else _KEPT


def _line(figure: _Figure, known: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """One figure beside the controls; empty where there is none to compare it with."""
    value = figure.entry["value"]
    others = {role: entries[figure.name] for role, entries in known.items() if figure.name in entries}
    others = {role: entry for role, entry in others.items() if entry["value"] is not None}
    if value is None:
        return f"{figure.name}: not scored, so nothing can be said" if figure.entry.get("n_nan") else ""
    # what is to be kept is compared with the model that it was kept from
    order = ("oracle", "target") if figure.forget else ("target", "oracle")
    role = next((role for role in order if role in others), None)
    if role is None:
        return ""
    # without an oracle there is no right place for a forget figure to be in
    if figure.forget and role != "oracle":
        said = f"{figure.name} {_shown(figure.entry)}, the target's {_number(others['target']['value'])}"
        return said + _sham(figure, others)
    side = _side(figure.entry, others[role])
    owner = f"the {role}'s {_shown(others[role])}"
    if side == 0:
        said = f"{figure.name} {_shown(figure.entry)} is not told apart from {owner}"
    else:
        word, meaning = ("above", figure.above) if side > 0 else ("below", figure.below)
        said = f"{figure.name} {_shown(figure.entry)} lies {word} {owner}: {meaning}"
    if not _has_interval(figure.entry) or not _has_interval(others[role]):
        said += " (no interval)"
    return said + (_way(figure, others) + _sham(figure, others) if figure.forget else "")


def _side(own: Mapping[str, Any], other: Mapping[str, Any]) -> int:
    """1 above, −1 below, 0 where the intervals touch."""
    own_low, own_high = (own["low"], own["high"]) if _has_interval(own) else (own["value"], own["value"])
    low, high = (other["low"], other["high"]) if _has_interval(other) else (other["value"], other["value"])
    return 1 if own_low > high else -1 if own_high < low else 0


def _has_interval(entry: Mapping[str, Any]) -> bool:
    return entry.get("low") is not None and entry.get("high") is not None


def _way(figure: _Figure, others: Mapping[str, Mapping[str, Any]]) -> str:
    """How much of the way from the target to the oracle lies behind it."""
    if "target" not in others or "oracle" not in others:
        return ""
    start, end = others["target"]["value"], others["oracle"]["value"]
    if _side(others["target"], others["oracle"]) == 0:
        return f"; the target's {_number(start)} is no different either, so this figure shows nothing"
    return (
        f"; {100 * (figure.entry['value'] - start) / (end - start):.0f} % of the way from the target's {_number(start)}"
    )


def _sham(figure: _Figure, others: Mapping[str, Mapping[str, Any]]) -> str:
    """How much of the change the same recipe makes when it forgets something else."""
    if "sham" not in others or "target" not in others:
        return ""
    start, other, end = others["target"]["value"], others["sham"]["value"], figure.entry["value"]
    if _side(figure.entry, others["target"]) == 0:
        return f"; the sham is at {_number(other)}"
    return f"; the sham, which forgot other rows, made {100 * (other - start) / (end - start):.0f} % of that change"


def _collapsed(results: Results) -> list[str]:
    """A warning for each set in which most answers are no answers, whatever they are compared with."""
    lines = []
    for name, found in results["sets"].items():
        entry = found["metrics"].get("collapse")
        if entry and entry["value"] is not None and entry["value"] > 0.5:
            lines.append(
                f"{name}: {100 * entry['value']:.0f} % of the answers are empty or loop; the model has collapsed, and its "
                "forget figures say nothing about forgetting"
            )
    return lines


def _tests(results: Results) -> list[str]:
    """Forget quality and PrivLeak, which are comparisons with the oracle themselves."""
    lines = [
        f"forget quality of {name} ({definition} truth ratio): {test['verdict']}"
        for name, tests in (results.get("forget_quality") or {}).items()
        for definition, test in tests.items()
    ]
    leak = results.get("privleak")
    if leak and leak["value"] is not None:
        inside = leak["low"] is not None and leak["low"] <= 0 <= leak["high"]
        meaning = "members stand out as before" if leak["value"] < 0 else "members stand out the other way: overdone"
        meaning = "not told apart from the oracle" if inside else meaning
        note = f" ({leak['note']})" if leak["note"] else ""
        lines.append(f"PrivLeak {_shown(leak)} %: {meaning}{note}")
    return lines


def _shown(entry: Mapping[str, Any]) -> str:
    shown = _number(entry["value"])
    return f"{shown} [{_number(entry['low'])}, {_number(entry['high'])}]" if _has_interval(entry) else shown


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
