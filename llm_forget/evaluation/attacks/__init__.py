"""Membership attacks. Each file is one attack: a pure function with one score per row, high for likely training data.

The file's name is the attack's name in a suite; give the path for an attack of your own. ``membership`` turns the scores
of members (the forget set) and non-members (a holdout set that was not trained on) into an AUC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from llm_forget.evaluation.tokens import Floats, TokenScores

Input = Literal["tokens", "texts", "reference_mean_logps", "gradient_norms"]


@dataclass(frozen=True)
class AttackRows:
    """The inputs of an attack on E rows.

    Attributes:
        tokens: token scores of the answers.
        texts: (E) the answers as text.
        reference_mean_logps: (E,) mean log-prob of each answer under a reference model, in nats; None without one.
        gradient_norms: (E,) norm of the gradient of each answer's cross-entropy; None if not computed.
    """

    tokens: TokenScores
    texts: Sequence[str] | None = field(default=None, repr=False)
    reference_mean_logps: Floats | None = None
    gradient_norms: Floats | None = None


@runtime_checkable
class Attack(Protocol):
    """The interface of an attack.

    Attributes:
        paper: its source.
        needs: the inputs that it needs.
    """

    paper: ClassVar[str]
    needs: ClassVar[tuple[Input, ...]]

    @property
    def label(self) -> str:
        """The name of its numbers in a result; it differs between settings of the same attack."""
        ...

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) one score per row, NaN if it cannot be scored. Only the order matters; high means member."""
        ...
