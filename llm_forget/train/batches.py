"""Batches of pairs. A pair is a forget row and the retain row of the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded

Pair = tuple[int, int | None]


class PairRow(NamedTuple):
    """One pair: the forget row's index and tokens, its retain row, an alternative answer to its prompt, and further rows."""

    forget_index: int
    forget: Encoded
    retain: Encoded | None = None
    alternative: Encoded | None = None
    more: tuple[Encoded, ...] = ()


class PairDataset(Dataset[PairRow]):
    """The pairs of a run in the order of the schedule.

    Args:
        forget: the forget rows.
        retain: the retain rows; empty without a retain term.
        pairs: (forget index, retain index or None) in the order of training.
        alternatives: an alternative answer to each forget prompt, in the order of ``forget``, or None.
        more: further set → its rows, of which each pair takes the next one.
        start: number of pairs of earlier phases, after which this one continues in the further sets.
    """

    def __init__(
        self,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        pairs: Sequence[Pair],
        alternatives: Sequence[Encoded] | None = None,
        more: Mapping[str, Sequence[Encoded]] = MappingProxyType({}),
        start: int = 0,
    ) -> None:
        self.forget, self.retain, self.pairs, self.alternatives = forget, retain, pairs, alternatives
        self.more, self.start = more, start

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairRow:
        forget, retain = self.pairs[index]
        return PairRow(
            forget,
            self.forget[forget],
            None if retain is None else self.retain[retain],
            None if self.alternatives is None else self.alternatives[forget],
            tuple(rows[(self.start + index) % len(rows)] for rows in self.more.values()),
        )


@dataclass(frozen=True)
class PairCollator:
    """Collates B pairs into one padded batch, in the order that ``StepRows`` describes.

    Attributes:
        pad_token_id: the padding token.
        score_alternatives: add the alternatives as rows; otherwise only their tokens are kept.
    """

    pad_token_id: int
    score_alternatives: bool = True

    def __call__(self, pairs: Sequence[PairRow]) -> dict[str, Tensor]:
        """``collate`` of all rows, ``forget_index`` (B,), and ``alternative_tokens`` (B, A), padded with −1."""
        others = [pair.alternative for pair in pairs if pair.alternative is not None]
        rows = [pair.forget for pair in pairs] + (others if self.score_alternatives else [])
        rows += [pair.retain for pair in pairs if pair.retain is not None]
        rows += [row for rows_of_one in zip(*(pair.more for pair in pairs), strict=True) for row in rows_of_one]
        batch = collate(rows, self.pad_token_id)
        batch["forget_index"] = torch.tensor([pair.forget_index for pair in pairs])
        if others and not self.score_alternatives:
            answers = [torch.tensor(row.input_ids[row.prompt_length :]) for row in others]
            batch["alternative_tokens"] = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-1)
        return batch
