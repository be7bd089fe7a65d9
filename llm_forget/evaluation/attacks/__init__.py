"""One file a membership attack: a pure function that gives one score per row, high for rows that look like training data.

The file's name is the attack's name in a suite; one of your own is named by its path. ``membership`` turns the scores of
members (the forget set) and non-members (a holdout that nobody trained on) into an AUC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from llm_forget.evaluation.tokens import Floats, TokenScores

Input = Literal["tokens", "texts", "reference_mean_logps", "gradient_norms"]


@dataclass(frozen=True)
class AttackRows:
    """What an attack may know of E rows.

    Attributes:
        tokens: scores of the rows' answers.
        texts: (E) the answers themselves.
        reference_mean_logps: (E,) mean log-prob of each answer under another model, nats; None without one.
        gradient_norms: (E,) norm of the gradient of each answer's cross-entropy; None when none were computed.
    """

    tokens: TokenScores
    texts: Sequence[str] | None = field(default=None, repr=False)
    reference_mean_logps: Floats | None = None
    gradient_norms: Floats | None = None


@runtime_checkable
class Attack(Protocol):
    """What the suite knows of an attack.

    Attributes:
        paper: where it comes from.
        needs: what must be known of the rows.
    """

    paper: ClassVar[str]
    needs: ClassVar[tuple[Input, ...]]

    @property
    def label(self) -> str:
        """The name of its numbers in a result; the same attack with other settings has another."""
        ...

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) one score per row, NaN where it cannot be scored; only their order counts, and high means member."""
        ...
