"""The settings of a recipe that names no method: with the base at hand and without, with data to keep and without."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from llm_forget.config import AdapterConfig, RetainConfig, StopConfig, TrainConfig, UnlearnRecipe
from llm_forget.train.natural import NAME as NATURAL

STEPS, SHAPED_STEPS = 40, 80  # most steps of a run, and with rows to keep
USUAL_STEPS = 24  # of a run with rows to keep that reaches its targets
MICRO, LARGEST = 8, 64  # fewest rows of a step, as far as there are so many, and most
SHARE = 5  # steps in which all rows take part once, if that makes steps of allowed size
EVERY = 4  # steps from one check to the next
QUESTIONS = 32
_RATE, _WIDTH = 4e-3, 576  # Adam's learning rate, and the hidden size of the model on which it was chosen
_RANKS = ((64, 32), (256, 64))  # a rank for up to so many rows; 128 for more


def settled(recipe: UnlearnRecipe, *, base: bool) -> UnlearnRecipe:
    """The recipe with a method, and with settings for it where the recipe has the defaults; unchanged if it names a method.

    With rows to keep, these shape the steps (``train.natural``) and are no part of the loss, so that a step costs the forget rows
    alone. Without them, the model's own answers about other names are a part of the loss.

    Args:
        recipe: the checked recipe.
        base: whether the model before it learned the forget rows is at hand.
    """
    if recipe.method:
        return recipe
    keeps, unseen = recipe.data.retain is not None, recipe.data.holdout is not None
    changes: dict[str, Any] = {"method": {"name": "base_teacher" if base else "npo"}}
    if replace(recipe.stop, tolerance=StopConfig().tolerance) == StopConfig() and (base or unseen):
        changes["stop"] = replace(recipe.stop, forget_target="rows", every=EVERY)
    if recipe.adapter == AdapterConfig() and keeps:
        changes["adapter"] = AdapterConfig(inputs="forget")
    # an optimizer or a learning rate that somebody gives stays, and then the rows to keep are a part of the loss
    train, usual = recipe.train, TrainConfig()
    shaped = "adapter" in changes and (train.optimizer, train.learning_rate) == (usual.optimizer, usual.learning_rate)
    if shaped:
        changes["train"] = replace(train, optimizer=NATURAL, schedule="constant")  # steps shorten by themselves
    if recipe.retain == RetainConfig():
        virtual = {"name": "virtual_neighbours", "weight": 0.0 if shaped else 3.0, "questions": QUESTIONS}
        changes["retain"] = RetainConfig(name="kl" if keeps else None, weight=0.0 if shaped else 2.0, more=[virtual])
    return replace(recipe, **changes)


def scaled(recipe: UnlearnRecipe, given: UnlearnRecipe, *, rows: int, width: int | None) -> UnlearnRecipe:
    """A settled recipe with steps, a rank and a learning rate for its rows and model; unchanged if the recipe names a method.

    A step has a fifth of the rows, but at least ``MICRO`` and at most ``LARGEST``. Every row is in at least four steps. Adam's
    learning rate, which is used without rows to keep, falls with the root of the hidden size.

    Args:
        recipe: the settled recipe.
        given: the recipe before it was settled.
        rows: number of forget rows.
        width: the model's hidden size; None if its config does not say.
    """
    if given.method or given.train != TrainConfig():
        return recipe
    micro = max(1, min(rows, MICRO))
    gathered = math.ceil(min(rows / SHARE, LARGEST) / micro)
    shaped = recipe.train.optimizer == NATURAL
    epochs = max(4, round((SHAPED_STEPS if shaped else STEPS) * micro * gathered / max(rows, 1)))
    rate = None if shaped else _RATE * math.sqrt(_WIDTH / max(width or _WIDTH, _WIDTH))
    train = replace(recipe.train, epochs=epochs, batch_size=micro, gradient_accumulation=gathered, learning_rate=rate)
    if given.adapter != AdapterConfig() or recipe.adapter is None:
        return replace(recipe, train=train)
    rank = next((rank for most, rank in _RANKS if rows <= most), 128)
    return replace(recipe, train=train, adapter=replace(recipe.adapter, rank=rank, alpha=rank))


def hidden_size(config: Any) -> int | None:
    """The hidden size of a model's config; None if it does not say."""
    found = getattr(config.get_text_config(), "hidden_size", None)
    return found if isinstance(found, int) else None
