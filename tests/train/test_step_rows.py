"""Test the rows of a step against groups computed by hand for batches of 3 pairs."""

from __future__ import annotations

import pytest

from llm_forget.methods import Needs
from llm_forget.methods.dpo import DPO
from llm_forget.methods.npo import NPO
from llm_forget.methods.rmu import RMU
from llm_forget.methods.undial import Undial
from llm_forget.model.logprobs import Part
from llm_forget.retain.activation import Activation
from llm_forget.retain.kl import KL
from llm_forget.retain.nll import NLL
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


def test_retain_only_steps_drop_the_forget_rows_of_the_pairs() -> None:
    assert "fffrrr"[StepRows(None, NLL().needs).in_batch(3)] == "rrr"
