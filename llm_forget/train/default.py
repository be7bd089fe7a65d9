"""The settings of a recipe that names no method: with the base at hand and without, with data to keep and without."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from llm_forget.config import AdapterConfig, RetainConfig, StopConfig, TrainConfig, UnlearnRecipe

FEWEST_STEPS, EPOCHS = 10, 6
_RATE, _WIDTH = 4e-3, 576  # the learning rate, and the hidden size of the model on which it was chosen


def settled(recipe: UnlearnRecipe, *, base: bool) -> UnlearnRecipe:
    """The recipe with a method, and with settings for it where the recipe has the defaults; unchanged if it names a method.

    Args:
        recipe: the checked recipe.
        base: whether the model before it learned the forget rows is at hand.
    """
    if recipe.method:
        return recipe
    keeps, unseen = recipe.data.retain is not None, recipe.data.holdout is not None
    changes: dict[str, Any] = {"method": {"name": "base_teacher" if base else "npo"}}
    if recipe.stop == StopConfig() and (base or unseen):
        changes["stop"] = StopConfig(forget_target="rows", every=2)
    if recipe.adapter == AdapterConfig() and keeps:
        changes["adapter"] = AdapterConfig(inputs="forget")
    if recipe.retain == RetainConfig():
        virtual = {"name": "virtual_neighbours", "weight": 3.0, "questions": 64}
        changes["retain"] = RetainConfig(name="kl" if keeps else None, weight=2.0, more=[virtual])
    if recipe.train == TrainConfig():
        changes["train"] = TrainConfig(epochs=EPOCHS, batch_size=8, gradient_accumulation=2, schedule="linear")
    return replace(recipe, **changes)


def scaled(recipe: UnlearnRecipe, given: UnlearnRecipe, *, rows: int, width: int | None) -> UnlearnRecipe:
    """A settled recipe with steps for its rows and a learning rate for its model; unchanged if the recipe names a method.

    A small forget set is passed over more often, for at least ``FEWEST_STEPS`` steps. The learning rate falls with the root of
    the hidden size, as usual for adapters; it was chosen on a model with a hidden size of 576.

    Args:
        recipe: the settled recipe.
        given: the recipe before it was settled.
        rows: number of forget rows.
        width: the model's hidden size; None if its config does not say.
    """
    if given.method or given.train != TrainConfig():
        return recipe
    step = recipe.train.batch_size * recipe.train.gradient_accumulation
    epochs = max(EPOCHS, math.ceil(FEWEST_STEPS * step / max(rows, 1)))
    rate = _RATE * math.sqrt(_WIDTH / max(width or _WIDTH, _WIDTH))
    return replace(recipe, train=replace(recipe.train, epochs=epochs, learning_rate=rate))


def hidden_size(config: Any) -> int | None:
    """The hidden size of a model's config; None if it does not say."""
    found = getattr(config.get_text_config(), "hidden_size", None)
    return found if isinstance(found, int) else None
