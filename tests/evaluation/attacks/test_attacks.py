"""Test each membership attack against values computed by hand, and the contract of all attacks."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_examples import Token, check_rows_stand_alone, scores_of, token_rows

from llm_forget.errors import RecipeError
from llm_forget.evaluation.attacks import Attack, AttackRows
from llm_forget.evaluation.attacks.grad_norm import GradNorm
from llm_forget.evaluation.attacks.loss import Loss
from llm_forget.evaluation.attacks.min_k import MinK, lowest_mean
from llm_forget.evaluation.attacks.min_k_plus_plus import MinKPlusPlus, standardised_logps
from llm_forget.evaluation.attacks.reference import Reference, reference_scores
from llm_forget.evaluation.attacks.zlib_ratio import ZlibRatio, compressed_bytes, zlib_scores
from llm_forget.utils.plugins import make_named, names_in

PACKAGE = "llm_forget.evaluation.attacks"
nan, inf = math.nan, math.inf
ATTACKS: list[Attack] = make_named(names_in(PACKAGE), PACKAGE, "row_scores")
SHARES = st.floats(0.01, 1)


def logps(*rows: list[float]) -> AttackRows:
    return AttackRows(scores_of([[(one, False, -1.0, 1.0) for one in row] for row in rows]))


def test_loss_is_the_mean_log_prob() -> None:
    assert Loss().row_scores(logps([-1.0, -3.0], [0.0])).tolist() == [-2.0, 0.0]


def test_zlib_by_hand() -> None:
    """A cross-entropy of 2 over n compressed bytes is −2/n: a compressible text is likely anyway, so it scores lower."""
    plain, random = "a" * 60, "q8Zr4kTx0vLbWn2Yc7PdHs5JgM1uEoAi9RfKtQwXyBzNlVpCmDhGjSeIaOTq"
    assert compressed_bytes(plain) == len(zlib.compress(b"a" * 60)) < compressed_bytes(random)
    found = zlib_scores([-2.0, -2.0, nan], [plain, random, plain])
    assert found[:2] == pytest.approx([-2 / compressed_bytes(plain), -2 / compressed_bytes(random)])
    assert found[0] < found[1]
    assert np.isnan(found[2])
    assert compressed_bytes("") == 8
    assert compressed_bytes("Zoë \ud800") > 8  # invalid UTF-8 does not end an evaluation
    rows = AttackRows(logps([-1.0, -3.0]).tokens, ["a" * 60])
    assert ZlibRatio().row_scores(rows) == pytest.approx([-2 / compressed_bytes(plain)])


def test_reference_is_the_difference() -> None:
    assert reference_scores([-1.0, -3.0], [-3.0, -1.0]).tolist() == [2.0, -2.0]
    assert np.isnan(reference_scores([nan, -1.0, -inf], [-1.0, nan, -inf])).all()
    rows = AttackRows(logps([-1.0], [-1.0]).tokens, reference_mean_logps=np.array([-3.0, -1.0]))
    assert Reference().row_scores(rows).tolist() == [2.0, 0.0]
    with_itself = AttackRows(rows.tokens, reference_mean_logps=rows.tokens.mean_logps())
    assert Reference().row_scores(with_itself).tolist() == [0.0, 0.0]


def test_min_k_by_hand() -> None:
    """The lowest 40 % of five tokens are two: (−5 − 4) / 2; for one or two tokens it is the lowest one."""
    found = MinK().row_scores(logps([-1.0, -5.0, -2.0, -3.0, -4.0], [-7.0], [-1.0, -2.0], [], [nan, -1.0, -1.0]))
    assert found[:3].tolist() == [-4.5, -7.0, -2.0]
    assert np.isnan(found[3:]).all()
    hundred = -np.arange(100.0)
    assert lowest_mean(hundred, np.array([0, 100]), k=0.29)[0] == -np.arange(71, 100).mean()  # 0.29 · 100 is 28.99…
    assert MinK().row_scores(logps([-1.0, -inf, -1.0])).tolist() == [-inf]


def test_min_k_plus_plus_by_hand() -> None:
    """(−3 + 1) / 2 = −1 and (−1 + 1) / 2 = 0: the lower one is −1; with a spread of zero, a difference of zero gives 0."""
    scores = scores_of([[(-3.0, False, -1.0, 2.0), (-1.0, False, -1.0, 2.0)], [(0.0, True, 0.0, 0.0)]])
    assert standardised_logps(scores).tolist() == [-1.0, 0.0, 0.0]
    assert MinKPlusPlus().row_scores(AttackRows(scores)).tolist() == [-1.0, 0.0]
    assert MinKPlusPlus(k=1.0).row_scores(AttackRows(scores)).tolist() == [-0.5, 0.0]


def test_grad_norm_is_negated() -> None:
    """Members have small gradients and high scores."""
    rows = AttackRows(logps([-1.0], [-1.0]).tokens, gradient_norms=np.array([0.5, 2.0]))
    assert GradNorm().row_scores(rows).tolist() == [-0.5, -2.0]


@given(token_rows, SHARES)
def test_min_k_rows_are_independent_and_between_the_minimum_and_the_mean(rows: list[list[Token]], k: float) -> None:
    for attack in (MinK(k), MinKPlusPlus(k)):
        check_rows_stand_alone(lambda scores, attack=attack: attack.row_scores(AttackRows(scores)), rows)  # type: ignore[misc]
    scores = scores_of(rows)
    found, means = MinK(k).row_scores(AttackRows(scores)), scores.mean_logps()
    for index, row in enumerate(rows):
        if row:
            assert min(token[0] for token in row) - 1e-9 <= found[index] <= means[index] + 1e-9
    np.testing.assert_allclose(MinK(1.0).row_scores(AttackRows(scores)), means)


@given(st.lists(st.floats(-9, 0), min_size=1, max_size=9), st.randoms(), SHARES)
def test_the_order_of_a_rows_tokens_does_not_matter(row: list[float], draw: object, k: float) -> None:
    other = list(row)
    draw.shuffle(other)  # type: ignore[attr-defined]
    assert MinK(k).row_scores(logps(row)) == pytest.approx(MinK(k).row_scores(logps(other)), rel=1e-12)
    assert MinK(k).row_scores(logps(row)) <= MinK(1.0).row_scores(logps(row)) + 1e-12


@given(token_rows, st.floats(0.01, 3), st.data())
def test_a_more_likely_token_never_lowers_the_score(rows: list[list[Token]], more: float, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(rows) - 1))
    if not rows[place]:
        return
    (logp, *rest), *others = rows[place]
    better = [*rows[:place], [(min(0.0, logp + more), *rest), *others], *rows[place + 1 :]]
    for attack in (Loss(), MinK(), MinKPlusPlus()):
        before, after = (attack.row_scores(AttackRows(scores_of(one))) for one in (rows, better))
        assert after[place] >= before[place] - 1e-9


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_every_attack_keeps_the_contract(attack: Attack) -> None:
    assert isinstance(attack, Attack)
    assert attack.paper
    tokens = scores_of([[(-1.0, True, -1.0, 0.5)], [], [(nan, False, nan, nan)]])
    bare = AttackRows(tokens, ["a", "b", "c"], np.array([-2.0] * 3), np.array([1.0, nan, nan]))
    assert all(getattr(bare, need) is not None for need in attack.needs)
    found = attack.row_scores(bare)
    assert found.shape == (3,)
    assert np.isnan(found).tolist() == [False, True, True]


def test_an_attack_without_its_inputs_gives_nan_and_not_zero() -> None:
    rows = logps([-1.0])
    assert np.isnan(GradNorm().row_scores(rows)).all()
    assert np.isnan(Reference().row_scores(rows)).all()


@pytest.mark.parametrize("k", [0, -0.1, 1.1, nan])
def test_invalid_shares_are_refused(k: float) -> None:
    for name in ("min_k", "min_k_plus_plus"):
        with pytest.raises(RecipeError, match="above 0 and at most 1"):
            make_named([{"name": name, "k": k}], PACKAGE, "row_scores")


def test_attacks_by_name() -> None:
    made = make_named(["loss", {"name": "min_k", "k": 0.2}, "min_k"], PACKAGE, "row_scores")
    assert [attack.label for attack in made] == ["loss", "min_k_0.2", "min_k"]
    with pytest.raises(RecipeError, match=r"attacks gives min_k twice"):
        make_named(["min_k", {"name": "min_k", "k": 0.4}], PACKAGE, "row_scores")
    with pytest.raises(RecipeError, match="did you mean 'zlib_ratio'"):
        make_named(["zlib_rato"], PACKAGE, "row_scores")
