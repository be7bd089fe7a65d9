"""One file a method: a pure loss, and a frozen dataclass whose fields are its hyper-parameters.

The file's name is the method's name in a recipe: ``methods/npo.py`` is ``method: {name: npo}``. A method of your own lives
anywhere and is named by its path: ``method: {name: path/to/mine.py}`` or ``{name: my_package.mine}``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from llm_forget.scores import AnswerScores

Found = TypeVar("Found")


@dataclass(frozen=True)
class Needs:
    """What must be computed for a loss, so that nothing is computed that it does not need.

    Attributes:
        logits: the policy's logits on answer positions.
        reference_logps: the reference's summed answer log-probs (of the alternatives too, where there are any): one pass over
            the data before training.
        reference_logits: the reference's logits on answer positions: a second forward, without gradient, every step.
        alternative: the scores of an alternative answer for every forget example: one more row each in the same forward.
        alternative_tokens: the tokens alone of such an answer, which costs nothing.
        hidden: the policy's hidden states where answers are predicted.
        reference_hidden: the reference's: a second forward, without gradient, every step.
        layer: the block whose output those are; None for the default (``logprobs.hidden_layer``).
    """

    logits: bool = False
    reference_logps: bool = False
    reference_logits: bool = False
    alternative: bool = False
    alternative_tokens: bool = False
    hidden: bool = False
    reference_hidden: bool = False
    layer: int | None = None

    @property
    def reference_forward(self) -> bool:
        """Whether the reference runs every step."""
        return self.reference_logits or self.reference_hidden

    @property
    def any_alternative(self) -> bool:
        """Whether every forget example needs another answer."""
        return self.alternative or self.alternative_tokens

    def names(self) -> list[str]:
        """What is needed, in words as in the attributes."""
        return [name for name, wanted in vars(self).items() if wanted is True]


@runtime_checkable
class Method(Protocol):
    """What the trainer knows of a method. Hyper-parameters are the fields of the dataclass that implements it.

    Attributes:
        needs: what ``forget_loss`` reads beyond the policy's own log-probs.
        default_retain: the retain term when the recipe names none; None for a method that has none of its own.
        bounded: False for a loss that can fall for ever, which then stops example by example unless the recipe says not to.
        towards: True when training makes the forget set *more* likely, and a later step turns the result round.
        paper: where it comes from.

    A method that reads alternative answers may say with ``alternative_source`` where they come from when the recipe does not
    (``refusals``, which is the default, or ``model``); one that trains some blocks only gives them by ``trained_layers(depth)``.
    """

    default_retain: ClassVar[str | None]
    towards: ClassVar[bool]
    paper: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What the loss reads; a class attribute will do where it depends on no hyper-parameter."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether the loss has a lower bound; a class attribute will do."""
        ...

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """One value per forget example, (B,), unreduced."""
        ...


def needed(value: Found | None, method: str, what: str) -> Found:
    """The value, or a ValueError that names the method and what it misses."""
    if value is None:
        raise ValueError(f"{method} needs {what}; the trainer provides it from `needs`")
    return value


def check_number(
    method: str, name: str, value: float, *, above: float | None = None, at_least: float | None = None, source: str = ""
) -> None:
    """Refuse a hyper-parameter that is not finite or too small, by name.

    Raises:
        ValueError: with what was given and what is allowed.
    """
    low = (above is not None and not value > above) or (at_least is not None and not value >= at_least)
    if low or not math.isfinite(value):
        allowed = f"greater than {above}" if above is not None else f"{at_least} or more"
        raise ValueError(f"{method}: {name} is {value}; it must be {allowed}{f' ({source})' if source else ''}")
