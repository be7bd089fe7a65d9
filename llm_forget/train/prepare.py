"""A recipe's data, read, checked, encoded and divided, before any model is loaded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import Example, check_overlap, read_examples
from llm_forget.data.sources import resolve_sources
from llm_forget.utils.digests import json_digest

Row = TypeVar("Row")


@dataclass(frozen=True)
class UnlearnSets:
    """What a run works on.

    Attributes:
        forget: rows to forget.
        forget_examples: the same as they were read, in the same order, to find other answers for.
        retain: rows to train the retain term on.
        validation: rows that the utility floor is judged on: the recipe's own, or a sample of the retain rows.
        holdout: rows that were never trained on.
        digests: of each set, from the ids of its examples.
        warnings: what the user should know.
    """

    forget: list[Encoded]
    forget_examples: list[Example]
    retain: list[Encoded]
    validation: list[Encoded]
    holdout: list[Encoded]
    digests: dict[str, str]
    warnings: list[str]


def prepare(
    recipe: UnlearnRecipe, tokenizer: Any, in_memory: Mapping[str, list[Example]] = MappingProxyType({})
) -> UnlearnSets:
    """Read, check and encode all sets of a recipe.

    Args:
        recipe: which sets there are.
        tokenizer: what encodes them.
        in_memory: sets that need no reading, by name; the recipe says where the others are.

    Raises:
        RecipeError: ``data_dir`` lacks a file.
        DataError: bad rows, an empty set, an answer without tokens, a row over the length limit, or overlap.
    """
    named = {name: getattr(recipe.data, name) for name in ("forget", "retain", "validation", "holdout")}
    sources, warnings = resolve_sources(
        {name: [source] for name, source in named.items() if source is not None and name not in in_memory},
        recipe.data_dir,
        "this recipe",
    )
    read = {
        name: in_memory[name]
        if name in in_memory
        else [row for one in sources.get(name, []) for row in read_examples(one)]
        for name in named
    }
    for name in ("retain", "validation", "holdout"):
        if read[name]:
            warnings += check_overlap(read["forget"], read[name])
    read["forget"] = _shuffled(read["forget"], recipe.seed)
    encoded: dict[str, list[Encoded]] = {}
    for name, examples in read.items():
        encoded[name] = []
        if examples:
            encoded[name], report = encode_all(tokenizer, examples, recipe.encoding, role=name)
            warnings += report.warnings
    return UnlearnSets(
        forget=encoded["forget"],
        forget_examples=read["forget"],
        retain=encoded["retain"],
        validation=_shuffled(encoded["validation"] or encoded["retain"], recipe.seed)[: recipe.stop.rows],
        holdout=_shuffled(encoded["holdout"], recipe.seed)[: recipe.stop.rows],
        digests={
            name: json_digest(sorted(item.id for item in examples)) for name, examples in read.items() if examples
        },
        warnings=warnings,
    )


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """In a random order, so that the first so many are a fair sample."""
    return random.Random(f"{seed} sample").sample(list(rows), len(rows))
