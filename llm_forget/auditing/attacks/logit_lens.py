"""Logit lens: read the answer from a middle block, with the model's own norm and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.hidden import decoder_blocks, final_norm, recorded
from llm_forget.auditing.tools.probing import at_token, encoded, over_answers
from llm_forget.auditing.tools.tuning import tuned
from llm_forget.model.head import output_head
from llm_forget.model.logprobs import answer_logits

if TYPE_CHECKING:
    from torch import Tensor

    from llm_forget.auditing.subject import Subject

# Shares of the depth. The plain setting is the model's own output.
DEPTHS = {"plain": 1.0, "5/6": 5 / 6, "2/3": 2 / 3, "1/2": 1 / 2, "1/3": 1 / 3}


@dataclass(frozen=True)
class LogitLens(Attack):
    """Probability of the answer after the block where it shows best."""

    group: ClassVar[Group] = "inside"
    needs: ClassVar[Access] = Access.WEIGHTS
    source: ClassVar[str] = "Patil et al. 2024, arXiv:2309.17410, logit lens attack"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row, in one pass for all blocks."""
        every = decoder_blocks(subject.model)
        names = list(DEPTHS)[1 : 1 + max(budget.tries, 1)]
        read = [every[max(0, min(round(DEPTHS[name] * len(every)), len(every) - 1) - 1)] for name in names]
        norm, head = final_norm(subject.model), output_head(subject.model)

        def compute(inputs: dict[str, Tensor]) -> list[Tensor]:
            targets = inputs["input_ids"][inputs["answer_mask"]]
            predicts = inputs["answer_mask"].roll(-1, dims=1)  # no row has an answer token at its first place
            with recorded(read) as seen:
                last = answer_logits(subject.model, inputs)
            return [at_token(logits, targets) for logits in (last, *(head(norm(one[predicts])) for one in seen))]

        found = over_answers(subject, encoded(subject, rows.forget), compute)
        settings = dict(zip(("plain", *names), found, strict=True))
        return tuned(rows, budget, settings, lambda logps, asked: np.exp(logps[list(asked)]))
