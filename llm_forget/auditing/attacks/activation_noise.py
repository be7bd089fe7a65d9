"""Activation noise: shake the hidden states of a middle block. What is only suppressed may come through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.hidden import block_at, changed, decoder_blocks
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from torch import Tensor

    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

# Standard deviation of the noise, in units of the root mean square of the block's output.
SIZES = {"plain": 0.0, "strong": 0.3, "weak": 0.1, "very strong": 0.6}


@dataclass(frozen=True)
class ActivationNoise(Attack):
    """Probability of the answer over a few draws of Gaussian noise after one block.

    Attributes:
        draws: draws that are averaged.
        depth: the block, as a share of the depth.
    """

    draws: int = 1
    depth: float = 0.5

    group: ClassVar[Group] = "inside"
    needs: ClassVar[Access] = Access.WEIGHTS
    source: ClassVar[str] = "arXiv:2505.23270, noise in middle layers detects what prompts do not"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        block = block_at(decoder_blocks(subject.model), self.depth)

        def score(size: float, asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            if size == 0:
                return probabilities(subject, examples)
            found = []
            for draw in range(self.draws):
                shaken = partial(_shake, size, torch.Generator().manual_seed(budget.seed + draw))
                with subject.changed(weights=False), changed(block, shaken):
                    found.append(probabilities(subject, examples))
            return np.asarray(np.mean(found, axis=0), dtype=np.float64)

        return tuned(rows, budget, SIZES, score)


def _shake(size: float, generator: torch.Generator, hidden: Tensor) -> Tensor:
    noise = torch.randn(hidden.shape, generator=generator).to(hidden.device)
    return hidden + size * hidden.float().square().mean(-1, keepdim=True).sqrt() * noise
