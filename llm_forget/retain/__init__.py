"""One file per retain term, which protects the knowledge to keep: ``retain: {name: nll, weight: 1.0}`` in a recipe.

Further terms are in ``retain.more``: ``more: [{name: virtual_neighbours, weight: 1.0}]``.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from llm_forget.methods import Needs
from llm_forget.scores import AnswerScores


class RetainTerm:
    """Base class of a retain term: defaults only, no loss.

    Attributes:
        rows: the rows that the loss reads: ``retain``, or a set that is made before training (``train/more_rows.py``).
        paper: the source, with its arXiv number.
    """

    rows: ClassVar[str] = "retain"
    paper: ClassVar[str] = ""

    @property
    def needs(self) -> Needs:
        """The tensors that ``retain_loss`` reads in addition to the policy's log-probs. A class attribute can override it."""
        return Needs()

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """One loss per retain example, (B,), unreduced."""
        raise NotImplementedError(f"{type(self).__name__} must define retain_loss")
