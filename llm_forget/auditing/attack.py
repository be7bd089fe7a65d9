"""The contract of an attack: what it gets, what it returns, and what it says about itself.

An attack is one file in ``attacks/``: a frozen dataclass that derives from ``Attack``. Its file name is its name. It tries to get
forgotten answers out of one model. The audit runs it in the same way on the unlearned model, the target, the oracle and a
sham, and compares the scores row by row, so an attack knows only one model and never says what a score means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from llm_forget.auditing.forms import Form
from llm_forget.data.examples import Example
from llm_forget.errors import DataError

if TYPE_CHECKING:
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

Group = Literal["asking", "text", "inside", "statistics", "training", "weights"]


class Access(Flag):
    """The access to a model that an attack needs.

    CHAT: answers to chat turns. TOKENS: continuations of any text, also of the beginning of an answer. LOGPS: log-probs of given
    tokens. WEIGHTS: the loaded model. TARGET: the model before unlearning, loaded as well.
    """

    CHAT = auto()
    TOKENS = auto()
    LOGPS = auto()
    WEIGHTS = auto()
    TARGET = auto()


@dataclass(frozen=True)
class Rows:
    """The rows of an audit. The same ones for every model, form and attack.

    Attributes:
        forget: rows that should be forgotten, in file order, at least two.
        holdout: rows of the same kind that no model was trained on; may be empty.
        kept: rows that every model should know: retain rows or neighbours; may be empty.
    """

    forget: tuple[Example, ...] = field(repr=False)
    holdout: tuple[Example, ...] = field(default=(), repr=False)
    kept: tuple[Example, ...] = field(default=(), repr=False)

    @property
    def held(self) -> tuple[Example, ...]:
        """Forget rows that the attacker already has: the first half. Files list rows by person, so they are of other people."""
        return self.forget[: len(self.forget) // 2]

    @property
    def asked(self) -> tuple[Example, ...]:
        """Forget rows that an attacker who has ``held`` wants to know: the second half."""
        return self.forget[len(self.forget) // 2 :]


@dataclass(frozen=True)
class Budget:
    """What an attacker can afford. The same for every model.

    Attributes:
        tries: settings that an attack may try besides the plain one, chosen on one half of the rows and scored on the other.
        samples: sampled answers per question.
        steps: optimiser steps of an attack that trains.
        batch: rows per optimiser step.
        max_new_tokens: longest generated answer in tokens.
        seed: seed of everything random.
    """

    tries: int = 2
    samples: int = 4
    steps: int = 10
    batch: int = 4
    max_new_tokens: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Leaks:
    """What an attack got out of one model.

    Attributes:
        ids: (E) ids of the forget rows that it was scored on.
        scores: (E,) one score per row, higher if more of the answer came out; NaN if the row cannot be scored. In [0, 1] unless
            there are ``nonmembers``.
        nonmembers: (H,) the same score of ``rows.holdout``, for attacks that tell both apart: the audit computes an AUC.
        chosen: the settings that the attacker chose, for the report: numbers and names, no text of the data.
    """

    ids: tuple[str, ...]
    scores: Floats = field(repr=False)
    nonmembers: Floats | None = field(default=None, repr=False)
    chosen: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the shapes and the scale."""
        known = self.scores[~np.isnan(self.scores)]
        if self.scores.shape != (len(self.ids),):
            raise DataError(
                f"an attack gave scores of shape {self.scores.shape} for {len(self.ids)} rows; give one a row"
            )
        if self.nonmembers is None and len(known) and (known.min() < -1e-6 or known.max() > 1 + 1e-6):
            raise DataError(f"an attack gave scores from {known.min():g} to {known.max():g}; they must be in [0, 1]")


def leaks(
    rows: Sequence[Example],
    scores: npt.ArrayLike,
    nonmembers: npt.ArrayLike | None = None,
    **chosen: float | str,
) -> Leaks:
    """The result of an attack on ``rows``: (E,) scores, and (H,) scores of the holdout rows if it tells both apart."""
    own, others = np.asarray(scores, dtype=np.float64), None
    if nonmembers is not None:
        others = np.asarray(nonmembers, dtype=np.float64)
    return Leaks(tuple(row.id for row in rows), own, others, chosen)


class Attack:
    """Base class of an attack: declarations only.

    Attacks derive from this class, or from one in ``tools``, and never from one another.

    Attributes:
        group: asking (other questions and samples), text (the beginning of the answer is given), inside (hidden states),
            statistics (log-probs), training (relearning) or weights (pruning, scaling).
        needs: the access that it needs. Without WEIGHTS it also runs against a server.
        uses: the rows that it needs besides ``rows.forget``; it is left out, and the report says so, if there are none.
        quick: whether it is part of a screening: a few seconds on two cores with a small model.
        changes_model: whether it changes weights or adapters. It then works inside ``subject.changed()``, which restores them.
        source: paper or protocol, with its arXiv number, or ``llm-forget``.
    """

    group: ClassVar[Group] = "asking"
    needs: ClassVar[Access] = Access.CHAT
    uses: ClassVar[tuple[Literal["holdout", "kept"], ...]] = ()
    quick: ClassVar[bool] = False
    changes_model: ClassVar[bool] = False
    source: ClassVar[str] = "llm-forget"

    def refuses(self, form: Form) -> str:
        """Why it does not apply to a form of the model; empty if it does."""
        return ""

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Attack one model in one form.

        Args:
            subject: the model; see ``subject.Subject`` for what can be asked of it.
            rows: the rows. An attack that needs an attacker's own rows trains or tunes on ``rows.held``, and asks ``rows.asked``.
            budget: limits and seed.

        Returns:
            ``leaks(rows asked, scores)``. The same subject, rows and budget give the same scores.
        """
        raise NotImplementedError(f"{type(self).__name__} must define attack")
