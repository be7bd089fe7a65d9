"""One file per method: a pure loss function, and a frozen dataclass whose fields are the hyper-parameters.

The file name is the method's name in a recipe: ``methods/npo.py`` is ``method: {name: npo}``. Your own method can be in any file;
name it by path or by module: ``method: {name: path/to/mine.py}`` or ``{name: my_package.mine}``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from llm_forget.scores import AnswerScores, Needs

__all__ = ["Method", "Needs", "check_number", "needed"]

Given = TypeVar("Given")


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
