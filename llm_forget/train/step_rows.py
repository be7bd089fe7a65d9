"""The rows of a training step, and the scores that each group of rows needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from llm_forget.methods import Needs
from llm_forget.model.logprobs import Part


@dataclass(frozen=True)
class RowGroup:
    """The forget, alternative, retain or further rows of a micro-batch. Each group has one row per pair.

    Attributes:
        name: ``forget``, ``alternative``, ``retain``, or another set that a retain term reads.
        logits: the loss reads the policy's logits.
        hidden: the loss reads the policy's hidden states.
        reference_logits: the loss reads the reference's logits.
        reference_hidden: the loss reads the reference's hidden states.
    """

    name: str
    logits: bool = False
    hidden: bool = False
    reference_logits: bool = False
    reference_hidden: bool = False

    @property
    def reference(self) -> bool:
        """Whether the reference runs on these rows in every step."""
        return self.reference_logits or self.reference_hidden


@dataclass(frozen=True)
class Selected:
    """The rows of a micro-batch that the policy runs on.

    Attributes:
        batch: ``input_ids``, ``attention_mask`` and ``answer_mask`` of these rows.
        parts: each group's slice of them, with the scores that the forward pass keeps for it.
        forget_index: the indices in the forget set of the forget rows among them.
        alternative_tokens: the tokens of their alternatives, if the batch has any.
    """

    batch: dict[str, Tensor]
    parts: dict[str, Part]
    forget_index: Tensor
    alternative_tokens: Tensor | None


@dataclass(frozen=True)
class StepRows:
    """The rows that the policy trains on in one step. The trainer, the memory plan and the cost table use this class.

    A batch of B pairs has B forget rows, then B alternative answers if the method scores them, then B retain rows, then B rows
    of each further set.

    Attributes:
        forget: the scores that the method needs; None for a step without a forget loss.
        retain: the scores that the retain terms need of the retain rows; None if no term reads them.
        more: further set → the scores that the retain terms need of it.
    """

    forget: Needs | None
    retain: Needs | None
    more: Mapping[str, Needs] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """The groups in the order of the batch."""
        found = []
        if self.forget is not None:
            found.append(_group("forget", self.forget))
            if self.scored_alternatives:
                found.append(RowGroup("alternative"))
        if self.retain is not None:
            found.append(_group("retain", self.retain))
        found += [_group(name, needs) for name, needs in self.more.items()]
        return tuple(found)

    @property
    def scored_alternatives(self) -> bool:
        """Whether the alternative answers are rows of the batch."""
        return self.forget is not None and self.forget.alternative

    @property
    def hidden(self) -> bool:
        """Whether any loss reads the policy's hidden states."""
        return any(group.hidden for group in self.groups)

    def in_batch(self, pairs: int) -> slice:
        """The slice of a batch that the policy runs on.

        A batch may have more rows: a step on one half of the objective ignores the rows of the other, and training on retain
        rows ignores the forget rows. Forget rows are always first and the rows to keep last.

        Args:
            pairs: pairs in the micro-batch.
        """
        rows = pairs * len(self.groups)
        return slice(0, rows) if self.retain is None and not self.more else slice(-rows, None)

    def parts(self, pairs: int) -> dict[str, Part]:
        """Each group's slice of the rows that ``in_batch`` selects, with the scores that the forward pass keeps for it."""
        return {
            group.name: Part(slice(place * pairs, (place + 1) * pairs), group.logits, group.hidden)
            for place, group in enumerate(self.groups)
        }

    def select(self, inputs: Mapping[str, Tensor], active: Tensor | None = None) -> Selected:
        """The rows of a batch that the policy runs on in this step.

        Args:
            inputs: a batch of ``PairCollator``.
            active: (B,) True for the pairs whose forget row, and its alternative, take part; None for all. At least one is True.
        """
        index, others = inputs["forget_index"], inputs.get("alternative_tokens")
        rows, parts = self.in_batch(len(index)), self.parts(len(index))
        batch = {name: inputs[name][rows] for name in ("input_ids", "attention_mask", "answer_mask")}
        if active is None or self.forget is None:
            return Selected(batch, parts, index, others)
        kept = torch.cat([active | (name not in ("forget", "alternative")) for name in parts])
        for name, start in zip(parts, range(0, len(kept), len(active)), strict=True):
            first, count = int(kept[:start].sum()), int(kept[start : start + len(active)].sum())
            parts[name] = replace(parts[name], rows=slice(first, first + count))
        batch = {name: value[kept] for name, value in batch.items()}
        return Selected(batch, parts, index[active], None if others is None else others[active])


def _group(name: str, needs: Needs) -> RowGroup:
    return RowGroup(name, needs.logits, needs.hidden, needs.reference_logits, needs.reference_hidden)


def union(first: Needs, second: Needs) -> Needs:
    """What two losses on the same rows read together."""
    values = {item.name: getattr(first, item.name) or getattr(second, item.name) for item in fields(Needs)}
    return Needs(**{**values, "layer": second.layer if first.layer is None else first.layer})
