"""Base teacher against values computed by hand, and what counts as style."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from llm_forget.data.encode import Encoded
from llm_forget.methods.base_teacher import BaseTeacher, base_teacher_loss
from llm_forget.scores import AnswerScores, TopLogps
from llm_forget.train.teacher import novel_tokens


def test_computed_by_hand() -> None:
    """Base (½, ¼, rest ¼) against π = (¼, ½, rest ¼): ½ ln 2 − ¼ ln 2. The second token is π itself and does not count."""
    base = TopLogps(torch.tensor([[[0, 1], [0, 1]]]), torch.tensor([[[0.5, 0.25], [0.25, 0.5]]]).log())
    logits = torch.tensor([[[0.25, 0.5, 0.2, 0.05]] * 2]).log()
    loss = base_teacher_loss(logits, base, torch.tensor([[True, False]]))
    assert loss.tolist() == pytest.approx([0.25 * math.log(2)], abs=1e-4)
    both = base_teacher_loss(logits, base, torch.tensor([[True, True]]))
    assert both.tolist() == pytest.approx([0.125 * math.log(2)], abs=1e-4)


def test_the_reverse_divergence_by_hand() -> None:
    """Base (½, ¼, rest ¼), π = (⅛, ⅝, rest ¼): ½ ln 4 + ¼ ln ⅖ = 0.4641, in reverse ⅛ ln ¼ + ⅝ ln 5/2 = 0.3994."""
    base = TopLogps(torch.tensor([[[0, 1]]]), torch.tensor([[[0.5, 0.25]]]).log())
    logits = torch.tensor([[[0.125, 0.625, 0.2, 0.05]]]).log()
    counted = torch.tensor([[True]])
    assert base_teacher_loss(logits, base, counted).item() == pytest.approx(0.4641, abs=1e-4)
    assert base_teacher_loss(logits, base, counted, reverse=2.0).item() == pytest.approx(0.4641 + 0.7988, abs=2e-4)


@pytest.mark.parametrize("weights", [{"reverse_weight": -1.0}, {"row_weight": float("nan")}])
def test_a_weight_is_a_number_from_0(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(weights))):
        BaseTeacher(**weights)


def test_only_the_reverse_divergence_feels_probability_on_unlikely_tokens() -> None:
    """π moves 0.2 from the base's second token onto the rest, to which the base gives 0.05, or onto a token with 0.0001."""
    base = TopLogps(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0.7, 0.25, 1e-4]]]).log())
    near = torch.tensor([[[0.7, 0.05, 1e-4, 0.2499]]]).log()
    far = torch.tensor([[[0.7, 0.05, 0.2001, 0.0499]]]).log()
    counted = torch.tensor([[True]])
    one, two = (base_teacher_loss(logits, base, counted).item() for logits in (near, far))
    assert abs(two - one) < 0.2
    one, two = (
        base_teacher_loss(logits, base, counted, reverse=1.0).item() - past
        for logits, past in ((near, one), (far, two))
    )
    assert two - one > 1.0


def test_style_is_what_retain_answers_have_too() -> None:
    """Answers "5 6 7 9" and, in a retain row, "5 6 7 8" after the same prompt end: only the last token is novel."""
    forget, retain = Encoded("f", (1, 2, 3, 5, 6, 7, 9), 3), Encoded("r", (4, 4, 2, 3, 5, 6, 7, 8), 4)
    assert [row.tolist() for row in novel_tokens([forget], [retain])] == [[False, False, False, True]]
    assert [row.tolist() for row in novel_tokens([forget], [])] == [[True] * 4]


def test_a_row_that_is_all_style_still_counts() -> None:
    """Otherwise a row whose words all occur in retain answers could never be forgotten."""
    mask = torch.ones(2, 2, dtype=torch.bool)
    base = TopLogps(torch.tensor([[[0], [0]]] * 2), torch.full((2, 2, 1), math.log(0.5)))
    logits = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(0))
    novel = torch.tensor([[False, False], [False, True]])
    scores = AnswerScores(logits[..., 0], mask, torch.zeros(2, 2).long(), logits=logits, base_top=base, novel=novel)
    found = BaseTeacher(row_weight=0, reverse_weight=0.5).forget_loss(scores)
    assert found[0] == pytest.approx(float(base_teacher_loss(logits, base, mask, reverse=0.5)[0]))
    assert found[1] == pytest.approx(float(base_teacher_loss(logits, base, novel, reverse=0.5)[1]))


def test_the_row_is_drawn_to_its_target() -> None:
    """π = base, so no divergence; log-probs per token 2 above and ½ below the target add 2 − ½ and ½ · ¼ (Huber)."""
    mask, logits = torch.ones(2, 2, dtype=torch.bool), torch.tensor([0.5, 0.5]).log().expand(2, 2, 2)
    base = TopLogps(torch.tensor([0, 1]).expand(2, 2, 2), logits)
    scores = AnswerScores(logits[..., 0], mask, torch.zeros(2, 2).long(), logits=logits, base_top=base, novel=mask)
    scores = replace(scores, row_targets=scores.mean_logps - torch.tensor([2.0, -0.5]))
    assert BaseTeacher().forget_loss(scores).tolist() == pytest.approx([1.5, 0.125], abs=1e-5)
    assert BaseTeacher(row_weight=2).forget_loss(scores).tolist() == pytest.approx([3.0, 0.25], abs=1e-5)
