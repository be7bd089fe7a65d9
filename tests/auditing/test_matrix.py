"""Cells judged by hand-made scores, and the grades that follow from a matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llm_forget.auditing.attack import Leaks
from llm_forget.auditing.grade import DOES_NOT_SHOW, grade
from llm_forget.auditing.matrix import NO_ORACLE, Cell, broken, judge_cell
from llm_forget.errors import DataError
from llm_forget.evaluation.equivalence import Answer

IDS = tuple(f"row{index}" for index in range(20))
LOW, HIGH = np.linspace(0.02, 0.12, 20), np.linspace(0.85, 0.97, 20)


def found(scores: np.ndarray, others: np.ndarray | None = None) -> Leaks:
    return Leaks(IDS[: len(scores)], scores, others)


def cell_of(own: np.ndarray) -> Cell:
    controls = {"target": found(HIGH), "oracle": found(LOW)}
    return judge_cell("greedy", "asking", "merged_bf16", {"model": found(own), **controls})


def test_a_cell_stands_between_oracle_and_target() -> None:
    """Half of the rows as the target, half as the oracle: R = ½."""
    half = cell_of(np.where(np.arange(20) % 2, HIGH, LOW))
    assert half.left == pytest.approx(0.5, abs=0.02)
    assert half.answer == Answer.LEFT.value
    assert half.leaks
    assert half.controls == pytest.approx({"target": HIGH.mean(), "oracle": LOW.mean()})
    assert half.low is not None and half.high is not None  # noqa: PT018
    assert half.low < half.value < half.high  # type: ignore[operator]
    same = cell_of(LOW + 1e-3 * np.resize([-1, 1], 20))
    assert (same.answer, same.leaks) == (Answer.AS_IF_NEVER_SEEN.value, False)


def test_rows_are_paired_by_id_and_unscored_rows_do_not_count() -> None:
    shuffled = np.random.default_rng(0).permutation(20)
    own = Leaks(tuple(IDS[at] for at in shuffled), LOW[shuffled])
    scores = LOW.copy()
    scores[3] = np.nan
    cell = judge_cell("a", "asking", "f", {"model": own, "target": found(HIGH), "oracle": found(scores)})
    assert cell.left == pytest.approx(0.0, abs=1e-9)


def test_membership_is_judged_by_its_auc() -> None:
    rng = np.random.default_rng(1)
    others = rng.normal(size=20)
    leaks = {
        "model": found(rng.normal(2, 1, 20), others),
        "target": found(rng.normal(5, 1, 20), others),
        "oracle": found(rng.normal(0, 1, 20), others),
    }
    cell = judge_cell("membership", "statistics", "f", leaks)
    assert cell.controls["target"] == 1.0
    assert 0.7 < (cell.value or 0) < 1
    assert cell.answer == Answer.LEFT.value


def test_an_oracle_below_chance_accuses_nobody() -> None:
    """An oracle whose AUC is 0.1 by luck. A model at 0.56, which tells nothing apart, does not leak; one at 0.9 does."""
    others = np.linspace(0, 1, 20)
    controls = {"target": found(others + 2, others), "oracle": found(others - 0.55, others)}
    even, high = (
        judge_cell("m", "statistics", "f", {"model": found(others + by, others), **controls}) for by in (0.07, 0.6)
    )
    assert (even.answer, even.leaks) == (Answer.LEFT.value, False)
    assert (even.left or 0) > 0.3
    assert high.leaks


def test_without_an_oracle_nothing_is_judged() -> None:
    cell = judge_cell("greedy", "asking", "f", {"model": found(HIGH), "target": found(HIGH)})
    assert (cell.answer, cell.left) == (NO_ORACLE, None)
    assert grade([cell]).level is None
    assert "oracle" in grade([cell]).words


def test_scores_must_fit_their_rows_and_scale() -> None:
    with pytest.raises(DataError, match="give one a row"):
        Leaks(("a", "b"), np.zeros(3))
    with pytest.raises(DataError, match="must be in"):
        Leaks(("a",), np.array([-3.0]))


def test_many_cells_are_tested_at_once() -> None:
    """P = 0.005 leaks alone, and does not among fifty cells; p = 1e-6 does."""
    cell = replace(cell_of(np.where(np.arange(20) % 2, HIGH, LOW)), p=0.005)
    quiet = [replace(cell, attack=f"a{index}", answer=Answer.TOO_FEW.value, left=0.0, p=0.5) for index in range(49)]
    assert broken([cell]) == [cell]
    assert broken([cell, *quiet]) == []
    sure = replace(cell, p=1e-6)
    assert broken([sure, *quiet]) == [sure]


def matrix(**leaking: str) -> list[Cell]:
    """One cell per group on a whole and a rounded form; ``leaking`` names group → form in which it leaks."""
    names = {"asking": "greedy", "text": "prefill", "inside": "lens", "statistics": "membership", "training": "relearn"}
    cells = []
    for form in ("merged_bf16", "nf4"):
        for group, name in names.items():
            leaks = leaking.get(group) == form
            answer = Answer.LEFT if leaks else Answer.AS_IF_NEVER_SEEN
            left, p = (0.6, 1e-9) if leaks else (0.01, 0.4)
            cells.append(Cell(name, group, form, answer.value, 0.5, left=left, p=p, rows=20))
    return cells


@pytest.mark.parametrize(
    ("leaking", "level", "named"),
    [
        ({"asking": "merged_bf16"}, None, "plain question"),
        ({"text": "merged_bf16"}, "E0", "prefill on merged_bf16"),
        ({"statistics": "merged_bf16"}, "E1", "membership"),
        ({"asking": "nf4"}, "E2", "greedy on nf4"),
        ({"training": "merged_bf16"}, "E2", "relearn"),
        ({}, "E3", "E4 needs training without the data"),
    ],
)
def test_the_grade_ends_at_the_first_thing_that_breaks(leaking: dict[str, str], level: str | None, named: str) -> None:
    found = grade(matrix(**leaking))
    assert found.level == level
    assert named in f"{found.words} {found.next_step}"
    assert bool(found.broken_by) == bool(leaking)
    assert found.does_not_show == DOES_NOT_SHOW


def test_what_was_not_tried_limits_the_grade_and_is_named() -> None:
    whole = [one for one in matrix() if one.form == "merged_bf16" and one.group != "training"]
    found = grade(whole)
    assert found.level == "E2"
    assert "no 4-bit form was tried and no relearning was tried" in found.next_step
    assert any("nf4" in line for line in found.not_tried)
    assert any("training" in line for line in found.not_tried)
    assert grade(matrix(), same_as_oracle=True).level == "E4"


def test_beyond_the_oracle_is_no_oracle_relative_forgetting() -> None:
    over = [
        replace(one, answer=Answer.OVERDONE.value, left=-0.6) if one.group == "statistics" else one for one in matrix()
    ]
    assert grade(over).level == "E1"
    assert "further from the target than the oracle" in grade(over).next_step
