"""One file a method: a pure loss, and a frozen dataclass whose fields are its hyper-parameters.

The file's name is the method's name in a recipe: ``methods/npo.py`` is ``method: {name: npo}``. A method of your own lives
anywhere and is named by its path: ``method: {name: path/to/mine.py}`` or ``{name: my_package.mine}``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from llm_forget.logprobs import AnswerScores


@dataclass(frozen=True)
class Needs:
    """What must be computed for a loss, so that nothing is computed that it does not need.

    Attributes:
        logits: the policy's logits on answer positions.
        reference_logps: the reference's summed answer log-probs: one pass over the data before training.
        reference_logits: the reference's logits on answer positions: a second forward, without gradient, every step.
        alternative: an alternative answer for every forget example.
    """

    logits: bool = False
    reference_logps: bool = False
    reference_logits: bool = False
    alternative: bool = False


@runtime_checkable
class Method(Protocol):
    """What the trainer knows of a method. Hyper-parameters are the fields of the dataclass that implements it.

    Attributes:
        needs: what ``forget_loss`` reads beyond the policy's own log-probs.
        default_retain: the retain term when the recipe names none; None for a method that has none of its own.
        bounded: False for a loss that can fall for ever, which then stops example by example unless the recipe says not to.
        towards: True when training makes the forget set *more* likely, and a later step turns the result round.
        paper: where it comes from.
    """

    needs: ClassVar[Needs]
    default_retain: ClassVar[str | None]
    bounded: ClassVar[bool]
    towards: ClassVar[bool]
    paper: ClassVar[str]

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """One value per forget example, (B,), unreduced."""
        ...
