"""Row targets against values computed by hand, and against models whose oracle is known."""

from __future__ import annotations

import numpy as np
import pytest

from llm_forget.errors import RecipeError
from llm_forget.stop import match
from llm_forget.train.row_targets import targets_from_base, targets_from_holdout


def test_base_and_holdout_by_hand() -> None:
    """The shift is mean((−2.5 + 2), (−4.5 + 4)) = −0.5; t = (−3 − 0.5, min(−1 − 0.5, −2)): no row is asked to become likelier."""
    found = targets_from_base([-3.0, -1.0], [-0.1, -2.0], [-2.0, -4.0], [-2.5, -4.5])
    assert found.values == pytest.approx((-3.5, -2.0))
    assert (found.shift, found.rows, found.source) == (pytest.approx(-0.5), 2, "base and holdout")


def test_base_alone_has_no_shift() -> None:
    """Without holdout rows the targets are the base's own log-probs, and say so."""
    found = targets_from_base([-3.0], [-0.1])
    assert (found.values, found.source, found.shift) == ((-3.0,), "base", 0.0)


def test_holdout_quantiles_by_hand() -> None:
    """With n = 2 and m = 4 the ranks' quantiles 1/4 and 3/4 lie halfway between the values at 1/8, 3/8 and at 5/8, 7/8."""
    found = targets_from_holdout([-1.0, -2.0], [-6.0, -3.0, -5.0, -4.0])
    assert found.values == pytest.approx((-3.5, -5.5))
    assert found.source == "holdout"


def test_the_same_rows_give_themselves() -> None:
    """With m = n every quantile is a value of the holdout, so a model that never saw the forget rows matches at once."""
    rows = list(np.random.default_rng(0).normal(-3, 1, 40))
    found = targets_from_holdout(rows, rows)
    assert found.values == pytest.approx(rows)
    assert match(rows, found.values).reached


def test_a_shifted_oracle_is_predicted() -> None:
    """An oracle that is the base plus a constant and noise of mean size ½ √(2/π) ≈ 0.4 nats is found to within that noise."""
    rng = np.random.default_rng(1)
    base, unseen = rng.normal(-3, 1, 200), rng.normal(-3, 1, 200)
    oracle = base - 0.8 + rng.normal(0, 0.5, 200)
    found = targets_from_base(list(base), [0.0] * 200, list(unseen), list(unseen - 0.8 + rng.normal(0, 0.5, 200)))
    assert np.abs(np.array(found.values) - oracle).mean() == pytest.approx(0.4, abs=0.06)
    assert match(list(oracle), found.values).reached


@pytest.mark.parametrize("change", [2.0, -2.0])
def test_half_over_and_half_under_do_not_match(change: float) -> None:
    """Two-sided: rows whose mean is right, half too likely and half too unlikely, are not at their targets."""
    targets = list(np.linspace(-4, -2, 40))
    moved = [value + change * (1 if place % 2 else -1) for place, value in enumerate(targets)]
    found = match(moved, targets)
    assert np.mean(moved) == pytest.approx(np.mean(targets))
    assert not found.reached
    assert (found.within, found.above, found.below) == (0.0, 0.5, 0.5)


def test_mistakes_are_refused() -> None:
    """No holdout and no base, different rows, and numbers that are none."""
    with pytest.raises(RecipeError, match=r"set base, or add data\.holdout"):
        targets_from_holdout([-1.0], [])
    with pytest.raises(ValueError, match="must score the same rows"):
        targets_from_base([-1.0], [-1.0, -2.0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        targets_from_base([float("nan")], [-1.0])
    with pytest.raises(ValueError, match="2 log-probs for 1 row targets"):
        match([-1.0, -2.0], [-1.0])


def test_a_shift_of_all_rows_is_not_reached() -> None:
    """Twelve rows that are all 0.22 nats too likely pass the test and are near their targets; an attack sees all of them."""
    targets = [-5.0 + 0.4 * row for row in range(12)]
    for moved, reached in ((0.22, False), (-0.4, False), (0.19, True), (-0.22, True)):
        found = match([target + moved for target in targets], targets)
        assert found.pvalue > 0.05
        assert found.within == 1.0
        assert found.shift == pytest.approx(moved)
        assert found.reached is reached


@pytest.mark.parametrize(("moved", "reached"), [(0.11, False), (-0.2, False), (0.09, True), (-0.12, True)])
def test_half_the_tolerance_halves_both_limits(moved: float, reached: bool) -> None:
    """On average 0.1 above and 0.125 below are left, and of 1.5 nats for a row 0.75."""
    targets = [-5.0 + 0.4 * row for row in range(12)]
    assert match([target + moved for target in targets], targets, 0.5).reached is reached
    apart = [target + (1.0 if row % 2 else -1.0) for row, target in enumerate(targets)]
    assert match(apart, targets).within == 1.0
    assert match(apart, targets, 0.5).within == 0.0
