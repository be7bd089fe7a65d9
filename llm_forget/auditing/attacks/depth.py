"""Depth: put the model's hidden states into the target, and see whether the target can still read the answer from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows, leaks
from llm_forget.auditing.tools.hidden import block_at, changed, decoder_blocks, states_after
from llm_forget.auditing.tools.probing import at_token, encoded, over_answers
from llm_forget.model.batching import evaluating
from llm_forget.model.logprobs import answer_logits

if TYPE_CHECKING:
    from torch import Tensor

    from llm_forget.auditing.subject import Subject


@dataclass(frozen=True)
class Depth(Attack):
    """Probability of the answer in the target, with the model's states after a block in place of its own.

    The mean is over a few blocks. A model that forgot only near its output scores like the target. R is then one minus the
    unlearning depth score, which weights each block by what the oracle's states lose there.

    Attributes:
        depths: the blocks, as shares of the depth.
    """

    depths: tuple[float, ...] = (1 / 3, 2 / 3)

    group: ClassVar[Group] = "inside"
    needs: ClassVar[Access] = Access.WEIGHTS | Access.TARGET
    source: ClassVar[str] = "arXiv:2605.24614, unlearning depth score by activation patching"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score the second half of the forget rows, because each block costs a pass of the target."""
        target = subject.before() if subject.before is not None else subject.model
        own, other = decoder_blocks(subject.model), decoder_blocks(target)

        def compute(inputs: dict[str, Tensor]) -> list[Tensor]:
            ids = inputs["input_ids"][inputs["answer_mask"]]
            states = states_after(subject.model, inputs, [block_at(own, depth) for depth in self.depths])
            found = []
            for depth, state in zip(self.depths, states, strict=True):
                with evaluating(target), changed(block_at(other, depth), lambda _, state=state: state):  # type: ignore[misc]
                    found.append(at_token(answer_logits(target, inputs), ids))
            return found

        logps = over_answers(subject, encoded(subject, rows.asked), compute)
        return leaks(rows.asked, np.exp(np.stack(logps)).mean(0))
