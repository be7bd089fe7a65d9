"""Rows for retain terms that are made before training. They stay in memory and are never written to a file, log or report."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.data.similar import mined_neighbours
from llm_forget.errors import DataError, RecipeError
from llm_forget.methods import Needs
from llm_forget.model.limits import padding_id
from llm_forget.retain import RetainTerm
from llm_forget.train.general import general_rows
from llm_forget.train.objective import Objective
from llm_forget.train.prepare import UnlearnSets
from llm_forget.train.swapped import swapped_teacher
from llm_forget.train.teacher import Teacher
from llm_forget.train.virtual import virtual_rows


@dataclass(frozen=True)
class Making:
    """Everything from which such rows are made.

    Attributes:
        recipe: the recipe.
        sets: its data.
        tokenizer: its tokenizer.
        model: the model before training.
        say: called with a sentence about the rows, without their text.
    """

    recipe: UnlearnRecipe
    sets: UnlearnSets
    tokenizer: Any
    model: Any
    say: Callable[[str], None]


def _virtual(term: RetainTerm, making: Making) -> list[Encoded]:
    recipe = making.recipe
    return virtual_rows(
        making.sets.forget_examples,
        making.sets.retain_examples,
        making.model,
        making.tokenizer,
        recipe.encoding,
        seed=recipe.seed,
        most=min(_setting(term, "questions"), len(making.sets.forget) * recipe.train.epochs),
        known_names=_setting(term, "known_names"),
        max_new_tokens=_setting(term, "max_new_tokens"),
        say=making.say,
    )


def _mined(term: RetainTerm, making: Making) -> list[Encoded]:
    sets = making.sets
    examples = list({example.id: example for example in sets.forget_examples}.values())
    found = mined_neighbours(examples, sets.retain_examples, _setting(term, "per_question"))
    wanted = {sets.retain_examples[index].id for index in found}
    rows = [row for row in sets.retain if row.id in wanted]
    if not rows:
        raise DataError(
            "mined_neighbours found no retain row that shares a word with a forget question and none of their names; give more "
            "retain rows, or leave the term out"
        )
    making.say(f"mined neighbours: {len(rows)} of {len(sets.retain)} retain rows")
    return random.Random(f"{making.recipe.seed} mined neighbours").sample(rows, len(rows))


def _general(term: RetainTerm, making: Making) -> list[Encoded]:
    return general_rows(
        making.model,
        making.tokenizer,
        making.recipe.encoding,
        seed=making.recipe.seed,
        most=_setting(term, "questions"),
        max_new_tokens=_setting(term, "max_new_tokens"),
        say=making.say,
    )


_MAKERS: Mapping[str, Callable[[RetainTerm, Making], list[Encoded]]] = {
    "virtual": _virtual,
    "mined": _mined,
    "general": _general,
}


def check_row_sets(objective: Objective, *, retain_given: bool) -> None:
    """Check that the rows of every retain term can be made.

    Raises:
        RecipeError: a term of your own names another set, or retain rows are needed and not given.
    """
    if not retain_given and any(one.term.rows in ("retain", "mined") for one in objective.kept):
        raise RecipeError("the retain term needs data.retain; add it, or set retain.name: null")
    for one in objective.kept:
        if one.term.rows not in ("retain", *_MAKERS):
            raise RecipeError(
                f"the retain term {one.name} reads the rows {one.term.rows!r}; known are retain, {', '.join(_MAKERS)}"
            )


def check_neighbour_floor(recipe: UnlearnRecipe, objective: Objective) -> None:
    """Check that a floor for neighbours has neighbours.

    Raises:
        RecipeError: no retain term has such rows.
    """
    if recipe.stop.neighbour_floor is not None and not objective.rows.more:
        raise RecipeError(
            "stop.neighbour_floor needs neighbours; add the retain term virtual_neighbours or mined_neighbours, for example "
            "retain.more: [{name: virtual_neighbours}], or set it to null"
        )


def more_rows(objective: Objective, making: Making) -> dict[str, list[Encoded]]:
    """The rows of each further set that the retain terms read, in the order of the batch."""
    terms = {one.term.rows: one.term for one in objective.kept}
    return {name: _MAKERS[name](terms[name], making) for name in objective.rows.more}


def swapped_top(needs: Needs, making: Making) -> Teacher | None:
    """The teacher that knows the forget rows with another name; None if the method does not read it."""
    if not needs.swapped_top:
        return None
    recipe, sets = making.recipe, making.sets
    return swapped_teacher(
        sets.forget,
        sets.forget_examples,
        sets.retain_examples,
        making.model,
        making.tokenizer,
        recipe.encoding,
        padding_id(making.tokenizer, making.model),
        seed=recipe.seed,
        say=making.say,
    )


def _setting(term: RetainTerm, name: str) -> Any:
    try:
        return getattr(term, name)
    except AttributeError:
        raise RecipeError(
            f"the retain term {type(term).__name__} reads the rows {term.rows!r}, but has no {name}"
        ) from None
