"""The calibrated base against values computed by hand, and against a model whose style and sureness are known."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.data.encode import Encoded
from llm_forget.train.calibration import LEVELS, Change, calibrated, measure_changes, style_levels
from llm_forget.train.teacher import Teacher, entropy_of

_ALL = len(LEVELS) + 1


def _teacher(probabilities: list[list[float]], answers: list[int], own: list[float], top: int = 2) -> Teacher:
    logps = torch.tensor(probabilities).log()[:, :top]
    tokens = torch.arange(top, dtype=torch.int32).repeat(len(answers), 1)
    return Teacher([tokens], [logps], [torch.tensor(answers, dtype=torch.int32)], [torch.tensor(own).log()])


def test_levels_are_the_wording_of_the_retain_answers() -> None:
    """Answers "5 6 7" and "5 6 8" after the prompts' "2": 6 follows 5 always, 7 and 8 half of the time, 9 never.

    With Witten and Bell, 6 has 2/10 alone, (2 + 1/5) / 3 = 11/15 after 5, and (2 + 11/15) / 3 > 0.8 after "2 5".
    """
    retain = [Encoded("r", (1, 2, 5, 6, 7), 2), Encoded("s", (3, 2, 5, 6, 8), 2)]
    forget = Encoded("f", (4, 2, 5, 6, 7, 9), 2)
    assert style_levels([forget], retain)[0].tolist() == [4, 5, 3, 0]
    assert style_levels([forget], [])[0].tolist() == [0] * 4


def test_a_share_by_hand() -> None:
    """Own token at ¼, share ½: ¼ + ½ · ¾ = 5/8; the other listed one halves. An own token outside the list replaces the last."""
    base = _teacher([[0.5, 0.25]] * 2, [1, 9], [0.25, 0.01])
    found = calibrated(base, [torch.zeros(2, dtype=torch.long)], [Change(share=0.5)] * _ALL)
    teacher, means = found.teacher, found.means
    torch.testing.assert_close(teacher.logps[0].exp(), torch.tensor([[0.25, 0.625], [0.25, 0.505]]))
    assert teacher.tokens[0].tolist() == [[0, 1], [0, 9]]
    assert float(means[0]) == pytest.approx((math.log(0.625) + math.log(0.505)) / 2)


def test_a_temperature_by_hand() -> None:
    """Probabilities 3/4 and 1/4 at temperature ½ are 9/10 and 1/10."""
    base = _teacher([[0.75, 0.25]], [1], [0.25])
    teacher = calibrated(base, [torch.zeros(1, dtype=torch.long)], [Change(temperature=0.5)] * _ALL).teacher
    torch.testing.assert_close(teacher.logps[0].exp(), torch.tensor([[0.9, 0.1]]), atol=1e-5, rtol=0)


def _drawn(sharpness: float) -> tuple[Teacher, torch.Tensor]:
    """400 tokens of a vocabulary of 8, of which the 6 likeliest are listed; and a teacher's log-probs of the own ones."""
    torch.manual_seed(0)
    logps, answer = (sharpness * torch.randn(400, 8)).log_softmax(-1), torch.randint(0, 8, (400,))
    order = logps.argsort(-1, descending=True)[:, :6]
    own = logps.gather(-1, answer[:, None]).squeeze(-1)
    return Teacher([order.int()], [logps.gather(-1, order)], [answer.int()], [own]), own


def _entropy(teacher: Teacher, part: torch.Tensor) -> float:
    """Over the listed tokens and the rest as one event."""
    listed = teacher.logps[0][part].exp()
    events = torch.cat([listed, 1 - listed.sum(-1, keepdim=True)], -1)
    return float(torch.special.entr(events.clamp(min=0)).sum(-1).mean())


@pytest.mark.parametrize("wanted", [-0.4, -1.4, -2.2])
def test_held_out_rows_get_their_mean_and_their_entropy(wanted: float) -> None:
    """Their mean by a share, their entropy by a temperature; each level by itself, small ones joined."""
    base, own = _drawn(1.0)
    level = torch.where(torch.arange(400) < 190, 0, 2)
    level[-10:] = 4
    after = torch.where(level == 0, own - 0.3, torch.full((400,), wanted))
    surer = _drawn(2.5)[0].logps
    changes = measure_changes(base, Teacher([], surer, [], [after]), [level])
    assert changes is not None
    assert max(changes[0].temperature, changes[2].temperature) < 0.8
    assert changes[2] == changes[4] != changes[0]
    found = calibrated(base, [level], changes)
    teacher = found.teacher
    assert found.counted[0].tolist() == (level == 0).tolist() if wanted > -1 else found.counted[0].all()
    for part in (level == 0, level > 0):
        assert float(teacher.answer_logps[0][part].mean()) == pytest.approx(float(after[part].mean()), abs=1e-3)
        if wanted < -1:  # own tokens as likely as -0.4 leave less entropy than that
            assert _entropy(teacher, part) == pytest.approx(_entropy(Teacher([], surer), part), abs=2e-3)
    assert (teacher.logps[0].exp().sum(-1) <= 1 + 1e-5).all()


def test_entropy_by_hand() -> None:
    """¼ and ½ and the rest ¼: 1.5 bits. A token that cannot be adds nothing."""
    listed = torch.tensor([[0.25, 0.5, 0.0], [0.0, 1.0, 0.0]]).log()
    found = Teacher([], [listed]).row_entropies
    assert found.tolist() == pytest.approx([1.5 * math.log(2) / 2])
    assert entropy_of(listed).tolist() == pytest.approx([1.5 * math.log(2), 0.0], abs=1e-6)


def test_own_tokens_that_are_too_likely_take_a_lower_temperature() -> None:
    """A model as unsure as the base, which gives the own tokens less: the mean goes before the entropy."""
    base, own = _drawn(1.0)
    level = torch.zeros(400, dtype=torch.long)
    changes = measure_changes(base, Teacher([], base.logps, [], [own - 0.3]), [level])
    assert changes is not None
    assert changes[0].share == 0
    assert changes[0].temperature < 1
    assert float(calibrated(base, [level], changes).means[0]) == pytest.approx(float(own.mean()) - 0.3, abs=1e-3)


def test_too_few_tokens_say_nothing() -> None:
    """Then the base stays as it is."""
    base = _teacher([[0.5, 0.25]], [1], [0.25])
    assert measure_changes(base, base, [torch.zeros(1, dtype=torch.long)]) is None
    assert measure_changes(Teacher([], []), Teacher([], []), []) is None
