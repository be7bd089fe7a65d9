"""Adapter subtraction: train an adapter *towards* the forget answers, then subtract it from the weights, once or in rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from llm_forget.errors import RecipeError
from llm_forget.methods import Method, Needs
from llm_forget.scores import AnswerScores
from llm_forget.stop import Measurement


def adapter_subtraction_loss(token_logps: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the forget answers. The adapter is negated afterwards, not the loss.

    ``loss = CE(y) = −(1/|y|) Σ_t log p_t``; after training the weights are ``W − λ (α/r) B A``, that is ``B ← −λ B``.

    Args:
        token_logps: (B, A) log-probs of the answer tokens in nats, 0 where masked.
        mask: (B, A) True at answer tokens.

    Returns:
        (B,) nats per token, ≥ 0. Two tokens of probability 1/2 and 1/8 give 2 ln 2 ≈ 1.3863.

    Source: task vectors, Ilharco et al. 2022, arXiv:2212.04089, section 3 (forgetting by negation).
    """
    return -token_logps.sum(-1) / mask.sum(-1).clamp(min=1)


class Session(Protocol):
    """The operations on the adapter that ``finish`` can use.

    Training towards the forget set changes B only; A is fixed. Negating the change of B therefore negates the change of the
    weights exactly.

    Attributes:
        target: forget probability to reach, or None.
        floor: retain probability to keep, or None without retain rows.
        steps: optimiser steps towards the forget set in the recipe.
    """

    target: float | None
    floor: float | None
    steps: int

    def train_towards(self, steps: int) -> None:
        """Take the next steps of the recipe towards the forget set, starting from the current adapter."""

    def train_from_base(self, steps: int) -> None:
        """The same on the weights of the base, less the change by as many steps on retain rows, each from no adapter."""

    def leave_shared(self, steps: int) -> None:
        """Remove the part of that change that the same number of steps on retain rows makes too (``projection.deficiency``)."""

    def set_strength(self, strength: float) -> None:
        """Replace the change of the last ``train_towards`` by −strength times that change."""

    def measure(self) -> Measurement:
        """Mean answer probability of the forget and retain samples under the current adapter."""

    def heal(self, steps: int, learning_rate: float | None) -> None:
        """Train the current adapter on the next retain rows only."""

    def settled(self, now: Measurement) -> bool:
        """Apply the recipe's stop rule, which keeps the best state; True if the target is reached."""


def search_strength(
    measure: Callable[[float], Measurement], *, target: float | None, floor: float | None, maximum: float, tries: int
) -> float:
    """Find the smallest strength that reaches the forget target, or else the largest that keeps the utility floor.

    Forget and retain probability both decrease with the strength, so bisection finds either limit.

    Args:
        measure: maps a strength to a measurement.
        target: forget probability to reach, or None to go as far as the floor allows.
        floor: retain probability to keep, or None.
        maximum: largest strength to try.
        tries: number of bisections.

    Returns:
        A strength in (0, maximum]; 0 if every strength that was tried breaks the floor.
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


def share(total: int, parts: int) -> list[int]:
    """Split ``total`` steps into ``parts`` shares that differ by at most one, larger ones first: 16 in 5 is 4, 3, 3, 3, 3."""
    return [total // parts + (index < total % parts) for index in range(parts)]


@dataclass(frozen=True)
class AdapterSubtraction(Method):
    """Adapter subtraction in several rounds, each followed by training on retain rows ("healing").

    A single round trains on answers that the model has memorised. Its gradient is small and its direction is poor, so it needs
    a strength that damages other knowledge. In later rounds the answers are less certain and the direction is better.
    Measured on TOFU-mini with 30 steps in total (forget / retain probability; target 0.954 / 0.949, oracle 0.090 / 0.945):
    one round of strength 4 with ten healing steps gives 0.244 / 0.937, five rounds of strength 4 with three healing steps
    each give 0.082 / 0.922.

    A model that knows the rows has little left to learn from them. The base does not know them, so its direction is that of
    learning them (``start: base``), as in MSA: ``θ − α (θ₁ − θ₀) + β (θ₂ − θ₀)``, with θ₁ and θ₂ trained from the base θ₀ on
    forget and on retain rows. Here α = β = λ, so that what both rows teach, such as the style, is not subtracted.
    On the demo it forgets less than rounds from the target: 0.50 with retain 0.88 after one searched strength (0.79 without the
    retain part), where rounds from the target end at 0.09 with 0.84.

    Attributes:
        start: the weights on which the direction is trained: the model's own (target), or the base's, which the recipe must name.
        strength: λ of each round. null searches for the strength that reaches the forget target and needs ``rounds: 1``.
        rounds: number of rounds. The recipe's steps and the healing steps are divided among them; at most one round per step.
        heal_steps: steps on retain rows only, over all rounds; null takes as many as towards the forget set.
        heal_learning_rate: learning rate of the healing steps; null takes the recipe's.
        maximum: largest strength of the search.
        tries: number of bisections of the search.
        search_floor: fraction of the retain floor that the search must keep. Healing then recovers the rest.
        project: apply Ext-Sub's projection before each subtraction. The same number of steps on retain rows, from the same
            start, gives a second change; the part that both changes share is not subtracted. This halves the change and needs
            about twice the strength. On TOFU-mini strength 8 with it gave 0.093 / 0.931 in 45 steps; strength 4 without it gave
            0.095 / 0.934 in 30.
    """

    start: Literal["target", "base"] = "target"
    strength: float | None = 4.0
    rounds: int = 5
    heal_steps: int | None = None
    heal_learning_rate: float | None = 2e-3
    maximum: float = 16.0
    tries: int = 5
    search_floor: float = 0.05
    project: bool = False

    towards: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Ilharco et al. 2022, arXiv:2212.04089; Zhang et al. 2023, arXiv:2306.14870; Hu et al. 2023, arXiv:2308.08090; "
        "MSA, arXiv:2506.20941"
    )

    def __post_init__(self) -> None:
        for name in ("strength", "maximum", "heal_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                hint = ", or null to search" if name == "strength" else ""
                raise ValueError(f"adapter_subtraction: {name} is {value}; give a number above 0{hint}")
        if not 0 <= self.search_floor <= 1:
            raise ValueError(f"adapter_subtraction: search_floor is {self.search_floor}; it must be between 0 and 1")
        if self.tries < 1 or self.rounds < 1 or (self.heal_steps is not None and self.heal_steps < 0):
            raise ValueError(
                f"adapter_subtraction: tries is {self.tries}, rounds {self.rounds} and heal_steps {self.heal_steps}; "
                "they must be at least 1, 1 and 0"
            )
        if self.start == "base" and self.project:
            raise ValueError(
                "adapter_subtraction: start is base and project true; the projection compares with steps on retain rows from the "
                "model's own weights: set one of the two"
            )
        if self.strength is None and self.rounds > 1:
            raise ValueError(
                f"adapter_subtraction: strength is null and rounds is {self.rounds}; the search for a strength needs "
                "a single round: set rounds to 1, or give a strength"
            )

    @property
    def needs(self) -> Needs:
        """The base's weights, if the direction is trained on them."""
        return Needs(base_weights=self.start == "base")

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) cross-entropy of each forget answer."""
        return adapter_subtraction_loss(forget.token_logps, forget.mask)

    def finish(self, session: Session) -> dict[str, float]:
        """Repeat: train towards the forget set, subtract the change, heal on retain rows.

        Returns:
            Entries for the run's record: ``strength``, ``rounds`` completed, and the probabilities after the last subtraction
            and before its healing.

        Raises:
            RecipeError: ``project`` is set and there are no retain rows.
        """
        if self.project and session.floor is None:
            raise RecipeError("method adapter_subtraction: project needs retain rows; add data.retain")
        heal_steps = session.steps if self.heal_steps is None else self.heal_steps
        rounds = max(min(self.rounds, session.steps), 1)
        plan = zip(share(session.steps, rounds), share(heal_steps, rounds), strict=True)
        found: dict[str, float] = {}
        for index, (towards, healing) in enumerate(plan, start=1):
            (session.train_from_base if self.start == "base" else session.train_towards)(towards)
            if self.project:
                session.leave_shared(towards)
            strength = self._search(session) if self.strength is None else self.strength
            session.set_strength(strength)
            now = session.measure()
            found = {"strength": strength, "rounds": index, "forget_after_subtraction": now.forget}
            if now.retain is not None:
                found["retain_after_subtraction"] = now.retain
                if healing:
                    session.heal(healing, self.heal_learning_rate)
                    now = session.measure()
            if session.settled(now):
                break
        return found

    def _search(self, session: Session) -> float:
        def at(strength: float) -> Measurement:
            session.set_strength(strength)
            return session.measure()

        floor = None if session.floor is None else session.floor * self.search_floor
        return search_strength(at, target=session.target, floor=floor, maximum=self.maximum, tries=self.tries)
