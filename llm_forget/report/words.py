"""The verdict on a run folder, from the results of the run and its controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llm_forget.evaluation.verdict import Verdict, judge
from llm_forget.runs import Run


def judge_run(run: Run, *, target: Run | None = None, oracle: Run | None = None, suite: str | None = None) -> Verdict:
    """Judge a run by its results on one suite.

    Args:
        run: the run.
        target: the run of the model before unlearning. Without it, the target in the run's own results is used.
        oracle: the run of a model that never saw the forget set; likewise.
        suite: the suite's name; by default the one with the most numbers.
    """
    for role, other in (("target", target), ("oracle", oracle)):
        if other is not None and other.path == run.path:
            return Verdict(f"This run is the {role}, which other runs are compared with.", [], [])
    found = run.suite(suite)
    if found is None:
        return Verdict("Not judged: the run was not evaluated.", [*_not_known_before(run), *_from_training(run)], [])
    others = {"target": target, "oracle": oracle}
    stored = {role: None if one is None else one.suite(found.suite) for role, one in others.items()}
    controls = {role: one.with_examples() for role, one in stored.items() if one is not None}
    judged = judge(found.with_examples(), controls)
    return replace(judged, notes=[*_not_known_before(run), *judged.notes])


def _not_known_before(run: Run) -> Iterator[str]:
    """What the run itself found: a forget set that was at the forget target before training."""
    if run.result.get("known_before") is False:
        yield (
            "Not known before, by the run's own sample: the forget set was at or below the forget target before the first step, "
            "so the run had nothing to forget."
        )


def _from_training(run: Run) -> Iterator[str]:
    """A verdict from the measurements of the run on its own samples."""
    before: dict[str, Any] = run.result.get("before") or {}
    after: dict[str, Any] = run.result.get("after") or {}
    for part in ("forget", "retain"):
        if before.get(part) is not None and after.get(part) is not None:
            yield (
                f"{part}: on the run's own sample the probability of the right answer is {after[part]:.3f} "
                f"(before unlearning {before[part]:.3f})."
            )
