"""Test the rows of a step against groups computed by hand for batches of 3 pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llm_forget.data.encode import Encoded
from llm_forget.methods import Needs
from llm_forget.methods.dpo import DPO
from llm_forget.methods.npo import NPO
from llm_forget.methods.rmu import RMU
from llm_forget.methods.undial import Undial
from llm_forget.model.logprobs import Part
from llm_forget.retain.activation import Activation
from llm_forget.retain.kl import KL
from llm_forget.retain.nll import NLL
from llm_forget.retain.virtual_neighbours import VirtualNeighbours
from llm_forget.scores import AnswerScores
from llm_forget.train.batches import PairCollator, PairDataset
from llm_forget.train.objective import FurtherTerm, Objective
from llm_forget.train.step_rows import StepRows

FIRST, SECOND, THIRD = slice(0, 3), slice(3, 6), slice(6, 9)


@pytest.mark.parametrize(
    ("forget", "retain", "parts", "reference"),
    [
        (NPO().needs, NLL().needs, {"forget": Part(FIRST), "retain": Part(SECOND)}, []),
        (NPO().needs, None, {"forget": Part(FIRST)}, []),
        (
            DPO().needs,
            NLL().needs,
            {"forget": Part(FIRST), "alternative": Part(SECOND), "retain": Part(THIRD)},
            [],
        ),
        (NPO().needs, KL().needs, {"forget": Part(FIRST), "retain": Part(SECOND, logits=True)}, ["retain"]),
        (
            Undial().needs,
            KL().needs,
            {"forget": Part(FIRST, logits=True), "retain": Part(SECOND, logits=True)},
            ["forget", "retain"],
        ),
        (
            RMU(layer=1).needs,
            Activation().needs,
            {"forget": Part(FIRST, hidden=True), "retain": Part(SECOND, hidden=True)},
            ["retain"],
        ),
        (None, NLL().needs, {"retain": Part(FIRST)}, []),
    ],
)
def test_groups_by_hand(
    forget: Needs | None, retain: Needs | None, parts: dict[str, Part], reference: list[str]
) -> None:
    rows = StepRows(forget, retain)
    assert rows.parts(3) == parts
    assert list(rows.parts(3)) == [group.name for group in rows.groups], "in the order of the batch"
    assert [group.name for group in rows.groups if group.reference] == reference
    assert rows.hidden == any(part.hidden for part in parts.values())
    assert rows.scored_alternatives == ("alternative" in parts)


@pytest.mark.parametrize(
    ("forget", "retain", "selected"),
    [
        (DPO().needs, NLL().needs, "ffaarr"),  # the whole step
        (DPO().needs, None, "ffaa"),  # its forget half
        (None, NLL().needs, "rr"),  # its retain half
    ],
)
def test_half_a_step_uses_its_rows_of_the_same_batch(forget: Needs | None, retain: Needs | None, selected: str) -> None:
    assert "ffaarr"[StepRows(forget, retain).in_batch(2)] == selected


def test_further_sets_follow_the_retain_rows() -> None:
    """Two terms on one set read it once, with the needs of both."""
    goal = Objective(
        DPO(), NLL(), more=(FurtherTerm("kl", KL(), 1.0), FurtherTerm("virtual", VirtualNeighbours(), 1.0))
    )
    assert list(goal.rows.parts(2)) == ["forget", "alternative", "retain", "virtual"]
    assert [group.name for group in goal.rows.groups if group.reference] == ["retain", "virtual"]
    assert "ffaarrvv"[goal.rows.in_batch(2)] == "ffaarrvv"
    assert "ffaarrvv"[replace(goal, method=None).rows.in_batch(2)] == "rrvv"
    assert "ffaarrvv"[replace(goal, retain=None, more=()).rows.in_batch(2)] == "ffaa"


def test_the_retain_loss_is_the_weighted_mean_of_the_terms() -> None:
    """Weights 1 and 3, losses ln 2 and ln 4: (ln 2 + 3 ln 4) / 4 times 4 is 7 ln 2."""
    mask, tokens = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    half, quarter = (AnswerScores(torch.tensor([[value]]).log(), mask, tokens) for value in (0.5, 0.25))
    other = type("Other", (NLL,), {"rows": "other"})()
    goal = Objective(None, NLL(), retain_weight=1.0, more=(FurtherTerm("other", other, 3.0),))
    terms = goal.terms({"retain": half, "other": quarter})
    assert float(terms["loss"]) == pytest.approx(7 * math.log(2))
    assert float(terms["retain_loss"]) == pytest.approx(7 / 4 * math.log(2))
    assert float(terms["other_term_loss"]) == pytest.approx(math.log(4))
    unweighted = replace(goal, retain_weight=0.0, more=(FurtherTerm("other", other, 0.0),))
    assert float(unweighted.terms({"retain": half, "other": quarter})["loss"]) == 0.0


def test_pairs_take_the_next_further_rows_and_later_phases_go_on() -> None:
    rows = [Encoded(str(number), (1, 2), 1) for number in range(3)]
    data = PairDataset(rows, rows, [(0, 1), (2, 0)], more={"virtual": rows}, start=2)
    assert [data[index].more[0].id for index in range(2)] == ["2", "0"]
    batch = PairCollator(0)([data[0], data[1]])
    assert batch["input_ids"].shape == (6, 2)


def test_retain_only_steps_drop_the_forget_rows_of_the_pairs() -> None:
    assert "fffrrr"[StepRows(None, NLL().needs).in_batch(3)] == "rrr"
