"""What protects the rest: one file a retain term, named in a recipe as ``retain: {name: nll, weight: 1.0}``."""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from llm_forget.methods import Needs
from llm_forget.scores import AnswerScores


@runtime_checkable
class RetainTerm(Protocol):
    """What the trainer knows of a retain term."""

    needs: ClassVar[Needs]

    def retain_loss(self, retain: AnswerScores) -> Tensor:
        """One value per retain example, (B,), unreduced."""
        ...
