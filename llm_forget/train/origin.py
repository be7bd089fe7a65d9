"""The base of a run: the model before it learned the forget rows. It is loaded first, scores the rows once, and is dropped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.model.limits import padding_id
from llm_forget.model.load import load_weights, locate_model, read_config
from llm_forget.train.prepare import UnlearnSets
from llm_forget.train.teacher import Teacher, teacher_of

UNSEEN = 64  # holdout rows; the mean of their changes is known to a tenth of a nat then
OpenBase = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class BaseScores:
    """What a run keeps of the base.

    Attributes:
        forget: (n,) mean log-prob per answer token of each forget row, in nats.
        holdout: (m,) the same of a sample of the holdout rows (``unseen``).
        top: the most likely tokens at the forget rows' answers.
        holdout_top: the same of that sample.
    """

    forget: Tensor
    holdout: Tensor
    top: Teacher
    holdout_top: Teacher


def score_base(
    open_base: OpenBase | None, recipe: UnlearnRecipe, method: Method, sets: UnlearnSets, tokenizer: Any
) -> BaseScores | None:
    """Score the forget and the holdout rows with the base, in one pass each; None if there is no base or nothing reads it.

    Raises:
        RecipeError: the method needs a base, and there is none.
    """
    needs = method.needs
    if open_base is None:
        if needs.base_top or needs.base_weights:
            raise RecipeError(
                f"method {recipe.method['name']} needs the model before it learned the forget rows: set base to its folder or "
                "hub id"
            )
        return None
    if recipe.stop.forget_target != "rows" and not (needs.base_top or needs.row_targets):
        return None
    return base_scores(open_base, sets, tokenizer)


def base_scores(open_base: OpenBase, sets: UnlearnSets, tokenizer: Any) -> BaseScores:
    """Score the forget and the holdout rows with the base."""
    with open_base() as model:
        pad = padding_id(tokenizer, model)
        top, forget = teacher_of(model, sets.forget, pad)
        holdout_top, holdout = teacher_of(model, unseen(sets), pad)
    return BaseScores(forget, holdout, top, holdout_top)


def unseen(sets: UnlearnSets) -> list[Encoded]:
    """The holdout rows that are compared with the base: at most ``UNSEEN``, evenly spaced."""
    return sets.holdout[:: -(-len(sets.holdout) // UNSEEN) or 1]


def has_base(recipe: UnlearnRecipe) -> bool:
    """Whether a recipe names a base, or has an adapter without which its model is the base."""
    return recipe.model.adapter is not None if recipe.base == "auto" else recipe.base is not None


def base_of(recipe: UnlearnRecipe, located: str) -> OpenBase | None:
    """How to open the base of a recipe; None if there is none.

    Args:
        recipe: the checked recipe.
        located: ``model.name``, as ``from_pretrained`` takes it.

    Raises:
        RecipeError: the base does not exist, or has another vocabulary than the model.
    """
    if not has_base(recipe):
        return None
    if recipe.base == "auto":
        return _opener(replace(recipe.model, name=located, adapter=None))
    found = named_base(recipe.base, recipe.model)
    if found is not None and recipe.base is not None:
        sizes = [
            getattr(read_config(ModelConfig(name)).get_text_config(), "vocab_size", None)
            for name in (recipe.base, located)
        ]
        if sizes[0] != sizes[1]:
            raise RecipeError(
                f"base: {recipe.base} has {sizes[0]} tokens and the model {sizes[1]}; give the model that it was fine-tuned from"
            )
    return found


def named_base(name: str | None, like: ModelConfig) -> OpenBase | None:
    """How to open a base by its name, with the settings of another model; None without a name.

    Raises:
        RecipeError: it does not exist.
    """
    return None if name is None else _opener(replace(like, name=locate_model(name), adapter=None, revision=None))


def without_adapters(model: Any) -> OpenBase:
    """How to open a ``PeftModel`` without its adapters."""

    @contextmanager
    def opened() -> Iterator[Any]:
        with model.disable_adapter():
            yield model

    return opened


def _opener(config: ModelConfig) -> OpenBase:
    @contextmanager
    def opened() -> Iterator[Any]:
        model = load_weights(config)
        try:
            yield model
        finally:
            del model
            gc.collect()

    return opened
