"""What runs on the same rows and the same model have in common, computed once: rows, the base's scores, made rows, a teacher.

It goes from process to process in memory, never to a file, because made rows hold the questions of the forget set. Only the
moments that aim an adapter, which hold no text and fill a gigabyte, may lie in a file.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError
from llm_forget.methods import Needs
from llm_forget.model.experts import without_router_loss
from llm_forget.model.limits import padding_id
from llm_forget.model.load import load_tokenizer, load_weights, locate_model
from llm_forget.model.packing import packed_attention
from llm_forget.model.steady import steady_base
from llm_forget.train.aiming import aim_name, aims, measure_aim, worth_sharing, write_aim
from llm_forget.train.build import Parts, make_parts, make_trainable
from llm_forget.train.checkpoint import run_identity
from llm_forget.train.more_rows import Making, more_rows, swapped_top
from llm_forget.train.objective import FurtherTerm
from llm_forget.train.origin import BaseScores, base_of, base_scores
from llm_forget.train.prepare import UnlearnSets, prepare
from llm_forget.train.start import Start, measure_start
from llm_forget.train.teacher import Teacher
from llm_forget.utils.digests import json_digest


@dataclass(frozen=True)
class Shared:
    """The common part of runs.

    Attributes:
        sets: the encoded rows.
        origin: scores of the model before it learned the forget rows; None if there is none at hand.
        more: the rows of further retain terms, by set.
        swapped: the teacher on the forget rows with another name; None if no run needs it.
        aim: file with what aims an adapter; None if every run measures it.
        start: the forget rows under the model before the first step; None without a base and without rows that it never saw.
    """

    sets: UnlearnSets
    origin: BaseScores | None
    more: Mapping[str, list[Encoded]]
    swapped: Teacher | None = None
    aim: Path | None = None
    start: Start | None = None


def share(
    recipe: UnlearnRecipe,
    *,
    swapped: bool = False,
    aim: Path | None = None,
    also: Callable[[Any, Any, Shared], None] = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Shared:
    """Compute the common part of all runs that differ from a recipe in method, weights, adapter and training only.

    Args:
        recipe: the checked recipe, which names a method and every retain term.
        swapped: whether a run will need the teacher on the forget rows with another name.
        aim: file for what aims an adapter, where the recipe asks for it and reading costs less than measuring.
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
    model = load_weights(located)
    making = Making(recipe, sets, tokenizer, model, say)
    _, more = further(make_parts(replace(recipe, output_dir="")), making, lenient=True)
    teacher = swapped_top(Needs(swapped_top=True), making) if swapped else None
    pad = padding_id(tokenizer, model)
    start = measure_start(model, sets, origin, pad) if origin is not None or sets.holdout else None
    found = Shared(sets, origin, more, teacher, start=start)
    also(model, tokenizer, found)
    if aim is not None and _stored_aim(recipe, found, model, located.name, pad, aim):
        found = replace(found, aim=aim)
    del model, making
    gc.collect()
    return found


def _aiming(recipe: UnlearnRecipe) -> list[Any]:
    """The settings that decide what aims an adapter, besides rows and weights."""
    modules = None if recipe.adapter is None else recipe.adapter.target_modules
    return [recipe.seed, recipe.train.optimizer, recipe.train.packs, modules, recipe.model.dtype]


def _stored_aim(recipe: UnlearnRecipe, found: Shared, model: Any, base: str, pad: int, file: Path) -> bool:
    """Write what aims the adapter of a recipe, unless the file holds it. Returns whether the file holds it now."""
    if not aims(recipe) or recipe.adapter is None:
        return False
    rows = {"forget": found.sets.forget, "retain": found.sets.retain, **found.more}
    identity = run_identity(recipe, rows, None, base)
    name = json_digest({key: identity[key] for key in ("data", "weights")} | {"recipe": _aiming(recipe)})
    adapted = make_trainable(model, replace(recipe.adapter, rank=1, alpha=1, top_share=1.0), compiled=False)
    if not worth_sharing(adapted):
        return False
    if aim_name(file) != name:
        # packed as in a run, because rows that are packed share the tokens of a common beginning
        with without_router_loss(adapted), steady_base(adapted), packed_attention(adapted, wanted=recipe.train.packs):
            write_aim(file, measure_aim(recipe, adapted, found.sets, found.more, pad), name)
    return True


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
