"""Steering vector: subtract the direction in which forgotten questions differ inside the model from kept ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.tools.hidden import block_at, changed, decoder_blocks, states_after
from llm_forget.auditing.tools.probing import batches, encoded, probabilities
from llm_forget.auditing.tools.tuning import tuned_by_half

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llm_forget.auditing.subject import Subject
    from llm_forget.data.examples import Example
    from llm_forget.evaluation.tokens import Floats

# Share of the depth, and the multiple of the direction that is subtracted; negative ones add it.
SETTINGS = {
    "plain": (0.0, 0.0),
    "subtract early": (0.3, 1.0),
    "subtract late": (0.6, 1.0),
    "add early": (0.3, -1.0),
    "add late": (0.6, -1.0),
}
_KEPT = 8  # kept rows whose mean is the other end of the direction


@dataclass(frozen=True)
class Steering(Attack):
    """Probability of the answer while a multiple of the direction is subtracted after one block.

    The direction comes from the half of the rows that is not scored: the mean hidden state of its prompts' last tokens minus
    that of kept prompts.
    """

    group: ClassVar[Group] = "inside"
    needs: ClassVar[Access] = Access.WEIGHTS
    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ("kept",)
    source: ClassVar[str] = "arXiv:2606.03291, one direction at inference time recovers unlearned knowledge"

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""
        blocks = decoder_blocks(subject.model)
        depths = {depth: block_at(blocks, depth) for depth, _ in SETTINGS.values()}
        kept = prompt_states(subject, rows.kept[:_KEPT], list(depths.values())).mean(1)
        states = prompt_states(subject, rows.forget, list(depths.values()))

        def score(setting: tuple[float, float], asked: Sequence[int], other: Sequence[int]) -> Floats:
            depth, strength = setting
            examples = [rows.forget[row] for row in asked]
            if strength == 0:
                return probabilities(subject, examples)
            place = list(depths).index(depth)
            direction = states[place, list(other)].mean(0) - kept[place]
            with subject.changed(weights=False), changed(depths[depth], lambda hidden: hidden - strength * direction):
                return probabilities(subject, examples)

        return tuned_by_half(rows, budget, SETTINGS, score)


def prompt_states(subject: Subject, examples: Sequence[Example], blocks: Sequence[nn.Module]) -> Tensor:
    """(L, E, H) hidden states after each block at the last token of each prompt, in fp32."""
    encoded_rows = encoded(subject, examples)
    found: dict[int, Tensor] = {}
    for batch, inputs in batches(subject, encoded_rows):
        states = torch.stack([one.float() for one in states_after(subject.model, inputs, blocks)])
        for place, index in enumerate(batch):
            found[index] = states[:, place, encoded_rows[index].prompt_length - 1]
    return torch.stack([found[index] for index in range(len(examples))], dim=1)
