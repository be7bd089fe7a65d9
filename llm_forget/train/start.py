"""The forget rows under the model before the first step: what a run needs of them, measured once for several runs or in each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from llm_forget.model.measure import answer_logps, refuse_not_finite
from llm_forget.train.calibration import Calibrated
from llm_forget.train.origin import BaseScores
from llm_forget.train.prepare import UnlearnSets
from llm_forget.train.row_targets import RowTargets, row_goals
from llm_forget.train.teacher import teacher_of


@dataclass(frozen=True)
class Start:
    """The forget rows before the first step.

    Attributes:
        logps: (n,) summed log-prob of each answer, in nats.
        probabilities: (n,) exp(mean log-prob) of each answer.
        targets: the row targets.
        calibrated: the base with the style of the other rows, if held-out rows show it.
    """

    logps: Tensor
    probabilities: Tensor
    targets: RowTargets
    calibrated: Calibrated | None


def measure_start(model: Any, sets: UnlearnSets, origin: BaseScores | None, pad_token_id: int) -> Start:
    """Measure the forget rows, and set their targets.

    Args:
        model: the model before the first step.
        sets: the rows.
        origin: scores of the model before it learned the forget rows; None if there is none at hand.
        pad_token_id: the padding token.

    Raises:
        RecipeError: a log-prob is not finite, or there is neither a base nor a holdout row.
    """
    logps, known = answer_logps(model, sets.forget, pad_token_id)
    refuse_not_finite(known.tolist())
    score = partial(teacher_of, model, pad_token_id=pad_token_id)
    return Start(logps, known, *row_goals(origin, sets, known.log().tolist(), score))
