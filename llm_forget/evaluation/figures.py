"""The figures that a verdict judges: which numbers of a result, their names, and which direction is bad."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Results = Mapping[str, Any]
Kind = Literal["forget", "kept", "neutral"]
Side = Literal[-1, 0, 1]  # below, not measurably different, above

# Metrics in plain words. Any other metric is called by its label.
_NAMES = {
    "probability": "probability of the right answer",
    "rougeL_recall": "ROUGE-L overlap with the right answer",
}
# Metrics that describe the answers, not the model's knowledge: (meaning of a higher value, meaning of a lower value).
_ANSWERS = {
    "collapse": (
        "More answers are empty or repeat themselves: that is damage, not forgetting.",
        "Fewer answers are empty or repeat themselves.",
    ),
    "repetition": (
        "Answers repeat themselves more: that is damage, not forgetting.",
        "Answers repeat themselves less.",
    ),
    "refusal": ("The model refuses to answer more often.", "The model refuses to answer less often."),
    "entropy": ("The model is less certain of each token.", "The model is more certain of each token."),
}
_MORE_LEFT = "More is left than in the oracle."
_TOO_FAR = "This goes further than the oracle, which can itself reveal what was removed."
_ATTACK = (
    "The forgotten rows are easier to recognise as training data than with the oracle.",
    "The forgotten rows score unusually low, so an attacker can still recognise them.",
)
_LEAK = (
    "Repeated sampling reveals the answer more often than from the oracle.",
    "Repeated sampling reveals the answer less often than from the oracle.",
)
_NOT_TRAINED = ("Higher; no model was trained on this set.", "Lower; no model was trained on this set.")
_PLAIN = ("Higher.", "Lower.")
# In sets to keep, the truth ratio is stored as max(0, 1 − R), so a higher one is better.
_LOW_IS_GOOD = ("collapse", "repetition", "refusal", "kl_to_target")
_RATES = ("collapse", "repetition", "refusal")  # often 0 before unlearning, so a relative loss has no meaning


@dataclass(frozen=True)
class Figure:
    """One number of a result.

    Attributes:
        name: its name in sentences.
        part: its set or test, as the headline names it.
        entry: its ``value``, ``low``, ``high`` and counts.
        kind: "forget" for what must be forgotten, "kept" for what must stay, "neutral" for what is only described.
        bad: the direction that means more is left (forget) or harm (kept): 1 for higher, −1 for lower, 0 for neither.
        above: the meaning of a value measurably above the control's.
        below: the meaning of a value measurably below the control's.
        references: the controls to compare with; the first that has the figure is used.
        main: whether the headline depends on it.
        sets: the sets that it was measured on.
        source: where its scores of single examples are: ("set", set, metric), ("attack", label), ("leak", set, k),
            ("capability",) or ("perplexity",); empty if there are none.
        relative: whether a loss is a share of the value before; otherwise it is in the figure's own unit.
    """

    name: str
    part: str
    entry: Mapping[str, Any]
    kind: Kind
    bad: Side = 0
    above: str = ""
    below: str = ""
    references: tuple[str, ...] = ("target", "oracle")
    main: bool = False
    sets: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    relative: bool = True


def figures(results: Results) -> Iterator[Figure]:
    """All figures of a result that have a meaning.

    Args:
        results: a result, or a control's part of one.
    """
    attacks = results.get("attacks") or {}
    not_trained = attacks.get("nonmembers")
    rows = tuple(attacks[one] for one in ("members", "nonmembers") if one in attacks)
    for name, found in results["sets"].items():
        for label, entry in found["metrics"].items():
            yield _of_set(name, label, entry, bool(found["forget"]), name == not_trained)
    for label, entry in (attacks.get("auc") or {}).items():
        yield _forget(f"{label} attack's AUC", f"{label} attack", entry, *_ATTACK, rows, ("attack", label))
    for name, found in (results.get("leak") or {}).items():
        for k, entry in found["at"].items():
            yield _forget(f"{name}: leak@{k}", f"leak@{k}", entry, *_LEAK, (name,), ("leak", name, k))
    for definition, entry in (results.get("model_utility") or {}).items():
        yield Figure(f"model utility ({definition})", "model utility", entry, "kept", -1)
    if results.get("perplexity"):
        name, entry = "perplexity of ordinary text", results["perplexity"]
        yield Figure(name, "perplexity", entry, "kept", 1, main=True, source=("perplexity",))
    if results.get("kl_to_target"):
        # the target has distance 0 from itself, so only the oracle is a fair comparison
        entry = results["kl_to_target"]
        yield Figure("KL to the target on ordinary text", "KL to the target", entry, "kept", 1, references=("oracle",))
    if results.get("capability"):
        name = f"{results['capability']['task']} accuracy"
        yield Figure(name, name, results["capability"]["acc"], "kept", -1, main=True, source=("capability",))


def _of_set(set_name: str, label: str, entry: Mapping[str, Any], forget: bool, not_trained: bool) -> Figure:
    name, sets, source = f"{set_name}: {_NAMES.get(label, label)}", (set_name,), ("set", set_name, label)
    answers = next((words for start, words in _ANSWERS.items() if label.startswith(start)), None)
    if forget and entry["forgotten"] != "none":
        bad: Side = 1 if entry["forgotten"] == "low" else -1
        above, below = (_MORE_LEFT, _TOO_FAR) if bad > 0 else (_TOO_FAR, _MORE_LEFT)
        order: tuple[str, ...] = ("oracle", "target")
        return Figure(name, set_name, entry, "forget", bad, above, below, order, label in _NAMES, sets, source)
    if forget or not_trained or label.startswith("entropy"):
        above, below = answers or (_NOT_TRAINED if not_trained else _PLAIN)
        order = ("oracle", "target") if forget else ("target", "oracle")
        return Figure(name, set_name, entry, "neutral", 0, above, below, order, sets=sets, source=source)
    bad = 1 if label.startswith(_LOW_IS_GOOD) else -1
    references: tuple[str, ...] = ("oracle",) if label == "kl_to_target" else ("target", "oracle")
    return Figure(
        name,
        set_name,
        entry,
        "kept",
        bad,
        references=references,
        main=label in _NAMES,
        sets=sets,
        source=source,
        relative=not label.startswith(_RATES),
    )


def _forget(
    name: str,
    part: str,
    entry: Mapping[str, Any],
    above: str,
    below: str,
    sets: tuple[str, ...],
    source: tuple[str, ...],
) -> Figure:
    return Figure(name, part, entry, "forget", 1, above, below, ("oracle", "target"), sets=sets, source=source)
