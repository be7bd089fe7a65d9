"""One file per method: a pure loss function, and a frozen dataclass whose fields are the hyper-parameters.

The file name is the method's name in a recipe: ``methods/npo.py`` is ``method: {name: npo}``. Your own method can be in any file;
name it by path or by module: ``method: {name: path/to/mine.py}`` or ``{name: my_package.mine}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from llm_forget.scores import AnswerScores

Given = TypeVar("Given")


@dataclass(frozen=True)
class Needs:
    """The tensors that a loss reads in addition to the policy's log-probs; nothing else is computed.

    Attributes:
        logits: the policy's logits at answer positions.
        reference_logps: the reference's summed answer log-probs, also of the alternatives; one pass before training.
        reference_logits: the reference's logits at answer positions; one forward without gradient in every step.
        alternative: the scores of an alternative answer to each forget prompt; one more row each in the same forward.
        alternative_tokens: the tokens of that answer only, which costs nothing.
        hidden: the policy's hidden states at the positions that predict the answer tokens.
        reference_hidden: the reference's hidden states; one forward without gradient in every step.
        layer: the block whose output is the hidden state, from 0; None for the default (``logprobs.hidden_layer``).
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
        """Whether the reference runs in every step."""
        return self.reference_logits or self.reference_hidden

    @property
    def any_alternative(self) -> bool:
        """Whether each forget example needs an alternative answer."""
        return self.alternative or self.alternative_tokens


class Method:
    """Base class of a method: defaults only, no loss. Methods derive from this class and never from one another.

    Attributes:
        default_retain: name of the retain term if the recipe names none; None for no retain term.
        towards: True if training makes the forget answers *more* likely and ``finish`` negates the result.
        alternative_source: default source of alternative answers: ``refusals`` or ``model``.
        paper: the source, with its arXiv number.
        finish: optional hook. It replaces the training loop: it drives an ``adapter_subtraction.Session`` and returns the
            entries for the run's record. A method with this hook needs an adapter.
        trained_layers: optional hook. It gets the block whose hidden states are read and returns the only blocks to train.
    """

    default_retain: ClassVar[str | None] = None
    towards: ClassVar[bool] = False
    alternative_source: ClassVar[str] = "refusals"
    paper: ClassVar[str] = ""
    finish: Callable[[Any], dict[str, float]] | None = None
    trained_layers: Callable[[int], list[int]] | None = None

    @property
    def needs(self) -> Needs:
        """The tensors that ``forget_loss`` reads in addition to the policy's log-probs. A class attribute can override it."""
        return Needs()

    @property
    def bounded(self) -> bool:
        """False if the loss has no lower bound. By default, examples that reached the forget target then stop counting."""
        return True

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """One loss per forget example, (B,), unreduced."""
        raise NotImplementedError(f"{type(self).__name__} must define forget_loss")


def needed(value: Given | None, method: str, what: str) -> Given:
    """Return the value, or raise a ValueError that names the method and the missing tensor."""
    if value is None:
        raise ValueError(f"{method} needs {what}; the trainer provides it from `needs`")
    return value


def check_number(
    method: str, name: str, value: float, *, above: float | None = None, at_least: float | None = None, source: str = ""
) -> None:
    """Raise a ValueError if a hyper-parameter is not finite or is below its limit."""
    low = (above is not None and not value > above) or (at_least is not None and not value >= at_least)
    if low or not math.isfinite(value):
        allowed = f"greater than {above}" if above is not None else f"{at_least} or more"
        raise ValueError(f"{method}: {name} is {value}; it must be {allowed}{f' ({source})' if source else ''}")
