"""Adapter subtraction: train an adapter *towards* the forget answers, then subtract it from the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from llm_forget.logprobs import AnswerScores
from llm_forget.methods import Needs
from llm_forget.stop import Measurement


def adapter_subtraction_loss(token_logps: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy *towards* the forget answers; the sign turns in the adapter, not in the loss.

    ``loss = CE(y) = −(1/|y|) Σ_t log p_t``; afterwards ``W − λ (α/r) B A``, that is ``B ← −λ B``.

    Args:
        token_logps: (B, A) log-probs of the answer tokens in nats, 0 where masked.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0. Two tokens of probability 1/2 and 1/8 give 2 ln 2 ≈ 1.3863.

    Source: task vectors, Ilharco et al. 2022, arXiv:2212.04089, section 3 (forgetting by negation).
    """
    return -token_logps.sum(-1) / mask.sum(-1).clamp(min=1)


class Session(Protocol):
    """What ``finish`` may do with the trained adapter."""

    target: float | None
    floor: float | None

    def set_strength(self, strength: float) -> None:
        """Make the adapter −strength times the trained one."""

    def measure(self) -> Measurement:
        """Mean answer probability of both samples as things stand."""

    def heal(self, steps: int, learning_rate: float | None) -> None:
        """Train the adapter, as it stands now, on retain rows alone."""


def search_strength(
    measure: Callable[[float], Measurement], *, target: float | None, floor: float | None, maximum: float, tries: int
) -> float:
    """The smallest strength that reaches the forget target, or else the largest that keeps the utility floor.

    The forget probability falls with the strength, and so does the retain probability: both edges are found by bisection.

    Args:
        measure: strength → measurement.
        target: forget probability to reach, or None to go as far as the floor allows.
        floor: retain probability that must stay, or None.
        maximum: largest strength tried.
        tries: number of bisections.
    """

    def enough(now: Measurement) -> bool:
        reached = target is not None and now.forget <= target
        broken = floor is not None and (now.retain is None or not now.retain >= floor)
        return reached or broken

    low, high = 0.0, maximum
    if not enough(measure(high)):
        return high
    for _ in range(tries):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(measure(middle)) else (middle, high)
    return high if floor is None or (measure(high).retain or 0.0) >= floor else low


@dataclass(frozen=True)
class AdapterSubtraction:
    """Adapter subtraction, with the strength given or searched for, and healing on retain rows afterwards.

    Attributes:
        strength: λ; null searches for the one that reaches the forget target.
        maximum: largest strength of the search.
        tries: bisections of the search.
        search_floor: share of the retain probability that the search must leave; below the recipe's utility floor when
            healing brings it back.
        heal_steps: steps on retain rows alone after the subtraction, on the same adapter.
        heal_learning_rate: of those steps; null takes the recipe's.
    """

    strength: float | None = None
    maximum: float = 16.0
    tries: int = 5
    search_floor: float = 0.05
    heal_steps: int = 20
    heal_learning_rate: float | None = 2e-3

    needs: ClassVar[Needs] = Needs()
    default_retain: ClassVar[str | None] = None
    bounded: ClassVar[bool] = True
    towards: ClassVar[bool] = True
    paper: ClassVar[str] = "Ilharco et al. 2022, arXiv:2212.04089; Zhang et al. 2023, arXiv:2306.14870"

    def __post_init__(self) -> None:
        for name in ("strength", "maximum", "heal_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                hint = ", or null to search" if name == "strength" else ""
                raise ValueError(f"adapter_subtraction: {name} is {value}; give a number above 0{hint}")
        if not 0 <= self.search_floor <= 1:
            raise ValueError(
                f"adapter_subtraction: search_floor is {self.search_floor}; it is a share, between 0 and 1"
            )
        if self.tries < 1 or self.heal_steps < 0:
            raise ValueError(
                f"adapter_subtraction: tries is {self.tries} and heal_steps {self.heal_steps}; at least 1 and 0 are needed"
            )

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) cross-entropy of each forget answer."""
        return adapter_subtraction_loss(forget.token_logps, forget.mask)

    def finish(self, session: Session) -> dict[str, float]:
        """Turn the trained adapter round, and heal what that damaged.

        Returns:
            What was chosen and measured, for the run's record.
        """

        def at(strength: float) -> Measurement:
            session.set_strength(strength)
            return session.measure()

        strength = self.strength
        if strength is None:
            floor = None if session.floor is None else session.floor * self.search_floor
            strength = search_strength(at, target=session.target, floor=floor, maximum=self.maximum, tries=self.tries)
        subtracted = at(strength)
        if self.heal_steps and subtracted.retain is not None:
            session.heal(self.heal_steps, self.heal_learning_rate)
        chosen = {"strength": strength, "forget_after_subtraction": subtracted.forget}
        return chosen if subtracted.retain is None else {**chosen, "retain_after_subtraction": subtracted.retain}
