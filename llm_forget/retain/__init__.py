"""One file per retain term, which protects the knowledge to keep: ``retain: {name: nll, weight: 1.0}`` in a recipe."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs
from llm_forget.scores import AnswerScores


class RetainTerm:
    """Base class of a retain term: defaults only, no loss.

    Attributes:
        paper: the source, with its arXiv number.
    """

    paper: ClassVar[str] = ""

    @property
    def needs(self) -> Needs:
        """The tensors that ``retain_loss`` reads in addition to the policy's log-probs. A class attribute can override it."""
        return Needs()

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """One loss per retain example, (B,), unreduced."""
        raise NotImplementedError(f"{type(self).__name__} must define retain_loss")
