"""What runs on the same rows and the same model have in common, computed once: rows, the base's scores, made rows, a teacher.

It goes from process to process in memory, never to a file, because made rows hold the questions of the forget set.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError
from llm_forget.methods import Needs
from llm_forget.model.load import load_model, load_tokenizer, locate_model
from llm_forget.train.build import Parts, make_parts
from llm_forget.train.more_rows import Making, more_rows, swapped_top
from llm_forget.train.objective import FurtherTerm
from llm_forget.train.origin import BaseScores, base_of, base_scores
from llm_forget.train.prepare import UnlearnSets, prepare
from llm_forget.train.teacher import Teacher


@dataclass(frozen=True)
class Shared:
    """The common part of runs.

    Attributes:
        sets: the encoded rows.
        origin: scores of the model before it learned the forget rows; None if there is none at hand.
        more: the rows of further retain terms, by set.
        swapped: the teacher of ``name_swap``; None if no run needs it.
    """

    sets: UnlearnSets
    origin: BaseScores | None
    more: Mapping[str, list[Encoded]]
    swapped: Teacher | None = None


def share(
    recipe: UnlearnRecipe,
    *,
    swapped: bool = False,
    also: Callable[[Any, Any, Shared], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Shared:
    """Compute the common part of all runs that differ from a recipe in method, weights, adapter and training only.

    Args:
        recipe: the checked recipe, which names a method and every retain term.
        swapped: whether a run will need the teacher of ``name_swap``.
        also: called with the model before training, its tokenizer and the result, for further measurements.
        say: called with notes.

    Raises:
        UserError: the model or the data cannot be used.
    """
    located = replace(recipe.model, name=locate_model(recipe.model.name))
    tokenizer = load_tokenizer(located)
    sets = prepare(
        recipe.data, recipe.encoding, tokenizer, rows=recipe.stop.rows, seed=recipe.seed, data_dir=recipe.data_dir
    )
    open_base = base_of(recipe, located.name)
    origin = None if open_base is None else base_scores(open_base, sets, tokenizer)
    model = load_model(located)[0]
    making = Making(recipe, sets, tokenizer, model, say)
    _, more = further(make_parts(replace(recipe, output_dir="")), making, lenient=True)
    teacher = swapped_top(Needs(swapped_top=True), making) if swapped else None
    found = Shared(sets, origin, more, teacher)
    also(model, tokenizer, found)
    del model, making
    gc.collect()
    return found


def further(parts: Parts, making: Making, *, lenient: bool) -> tuple[Parts, dict[str, list[Encoded]]]:
    """The rows of the further retain terms, and the parts without those terms whose rows cannot be made, if lenient."""
    if not lenient:
        return parts, more_rows(parts.objective, making)
    kept: list[FurtherTerm] = []
    rows: dict[str, list[Encoded]] = {}
    for one in parts.more:
        try:
            rows |= more_rows(replace(parts, more=(one,)).objective, making)
            kept.append(one)
        except DataError as error:
            making.say(f"the run goes on without the retain term {one.name}: {error}")
    return replace(parts, more=tuple(kept)), rows


def known_rows(parts: Parts, shared: Shared) -> tuple[Parts, dict[str, list[Encoded]]]:
    """As ``further``, from rows that are known."""
    more = tuple(one for one in parts.more if one.term.rows == "retain" or one.term.rows in shared.more)
    parts = replace(parts, more=more)
    return parts, {name: list(shared.more[name]) for name in parts.objective.rows.more}
