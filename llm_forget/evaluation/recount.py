"""Compute a result's means again from the scores of its examples, and name the figures that differ from what it states.

Needs no torch, so runs can be checked wherever they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llm_forget.evaluation.metrics.truth_ratio import forget_truth_ratio, kept_truth_ratio
from llm_forget.evaluation.results import StoredResults
from llm_forget.evaluation.scores_file import Columns
from llm_forget.evaluation.tokens import Floats

_PREFIX = "attack_"  # of an attack's scores in the columns
_TRUTH_RATIO = "truth_ratio"
_CLOSE = 1e-9


def doubts_about(stored: StoredResults) -> list[str]:
    """What makes a result file doubtful: edits, and stated figures that its scores do not give. One sentence each.

    Raises:
        UserError: the scores cannot be read.
    """
    name, edited = stored.path.name, stored.edited
    found = [f"{name} {edited}"] if edited else []
    return found + [f"{name}: {one}" for one in recount(stored, stored.columns())]


def recount(stored: StoredResults, columns: Columns) -> list[str]:
    """Compare the stated means with the scores.

    Covered are the metrics of every set, the membership attacks' AUC and the accuracy of the capability task. A metric that
    averages other values than its scores is left out, unless it is the truth ratio.

    Args:
        stored: the results.
        columns: their scores, from ``StoredResults.columns``.

    Returns:
        One sentence for each figure that differs: which one, the stated and the recomputed value.
    """
    if not columns:
        return []
    scores = _by_set(columns)
    return [
        f"{name} is stated as {_shown(stated)}, but the scores of its examples give {_shown(found)}"
        for name, stated, found in (
            *_sets(stored.raw, scores),
            *_attacks(stored.raw, scores),
            *_task(stored.raw, scores),
        )
        if not _same(stated, found)
    ]


Figures = Iterator[tuple[str, float | None, float | None]]


def _by_set(columns: Columns) -> dict[str, dict[str, Floats]]:
    """Set → label → scores, NaN for an example that was not scored; without labels that the set does not have."""
    places: dict[str, list[int]] = {}
    for index, name in enumerate(columns["set"]):
        places.setdefault(name, []).append(index)
    found: dict[str, dict[str, Floats]] = {name: {} for name in places}
    for label, values in columns.items():
        if label in ("set", "id"):
            continue
        for name, rows in places.items():
            own = [values[row] for row in rows]
            if None not in own:
                found[name][label] = np.array(own, dtype=np.float64)
    return found


def _sets(raw: Mapping[str, Any], scores: Mapping[str, Mapping[str, Floats]]) -> Figures:
    for name, one in raw["sets"].items():
        own = scores.get(name, {})
        rows = len(next(iter(own.values()), []))
        if own:
            yield f"the number of {name} examples", one["n"], rows
        for label, entry in one["metrics"].items():
            infinite = entry["value"] is None and entry["n"] > 0  # JSON has no infinity
            if label not in own or infinite or (entry.get("averaged") and not label.startswith(_TRUTH_RATIO)):
                continue
            values = _averaged(label, own[label], bool(one["forget"]))
            scored = values[~np.isnan(values)]
            yield f"{name}.{label}", entry["value"], float(scored.mean()) if len(scored) else None
            yield f"the n of {name}.{label}", entry["n"], len(scored)


def _averaged(label: str, scores: Floats, forget: bool) -> Floats:
    """The values that a metric averages: its scores, or for the truth ratio R what it reports of R."""
    if not label.startswith(_TRUTH_RATIO):
        return scores
    return forget_truth_ratio(scores) if forget else kept_truth_ratio(scores)


def _attacks(raw: Mapping[str, Any], scores: Mapping[str, Mapping[str, Floats]]) -> Figures:
    attacks = raw.get("attacks") or {}
    members, others = (scores.get(attacks.get(side, ""), {}) for side in ("members", "nonmembers"))
    for label, entry in (attacks.get("auc") or {}).items():
        key = _PREFIX + label
        if key not in members or key not in others:
            continue
        own, other = (side[~np.isnan(side)] for side in (members[key], others[key]))
        # an infinite score counts in the AUC, but is not in the file
        if len(own) and len(other) and (len(own), len(other)) == (entry["n"], entry["n_nonmembers"]):
            yield f"the {label} attack's AUC", entry["value"], _auc(own, np.sort(other))


def _auc(own: Floats, other: Floats) -> float:
    """P(member > non-member) + ½ P(equal); the scores of non-members are in order."""
    below, up_to = (np.searchsorted(other, own, side=side) for side in ("left", "right"))
    return float((below + up_to).sum() / (2 * len(own) * len(other)))


def _task(raw: Mapping[str, Any], scores: Mapping[str, Mapping[str, Floats]]) -> Figures:
    task = raw.get("capability") or {}
    own = scores.get(f"capability.{task.get('task')}", {})
    for label in ("acc", "acc_norm"):
        if label in own and task.get(label):
            yield f"{task['task']} {label}", task[label]["value"], float(own[label].mean())


def _same(stated: float | None, found: float | None) -> bool:
    if stated is None or found is None:
        return stated is found
    return math.isclose(stated, found, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _shown(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.6g}"
