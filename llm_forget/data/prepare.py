"""A recipe's data, read, checked, encoded and divided, before any model is loaded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import DataSource, Example, check_overlap, read_examples
from llm_forget.digests import json_digest

_VALIDATION_SHARE = 5  # one retain row in so many is kept out of training, to judge the utility floor by
_FEW = 10  # below this a retain set is too small to divide


@dataclass(frozen=True)
class UnlearnSets:
    """What a run works on.

    Attributes:
        forget: rows to forget.
        retain: rows to train the retain term on.
        validation: retain rows kept out of training; the utility floor is judged on them.
        holdout: rows that were never trained on.
        digests: of each set, from the ids of its examples.
        warnings: what the user should know.
    """

    forget: list[Encoded]
    retain: list[Encoded]
    validation: list[Encoded]
    holdout: list[Encoded]
    digests: dict[str, str]
    warnings: list[str]


def prepare(recipe: UnlearnRecipe, tokenizer: Any) -> UnlearnSets:
    """Read, check and encode all sets of a recipe.

    Raises:
        DataError: bad rows, an empty set, an answer without tokens, a row over the length limit, or overlap.
    """
    warnings: list[str] = []
    read = {name: _read(getattr(recipe.data, name)) for name in ("forget", "retain", "holdout")}
    if read["retain"]:
        warnings += check_overlap(read["forget"], read["retain"])
    encoded: dict[str, list[Encoded]] = {}
    for name, examples in read.items():
        encoded[name] = []
        if examples:
            encoded[name], report = encode_all(tokenizer, examples, recipe.encoding, role=name)
            warnings += report.warnings
    retain, validation = divide(encoded["retain"], recipe.stop.rows, recipe.seed)
    if 0 < len(encoded["retain"]) < _FEW:
        warnings.append(f"only {len(retain)} retain rows: the utility floor is judged on rows that are also trained on")
    return UnlearnSets(
        forget=_shuffled(encoded["forget"], recipe.seed),
        retain=retain,
        validation=validation,
        holdout=_shuffled(encoded["holdout"], recipe.seed)[: recipe.stop.rows],
        digests={name: json_digest(sorted(item.id for item in examples)) for name, examples in read.items() if examples},
        warnings=warnings,
    )


def divide(rows: Sequence[Encoded], most: int, seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Retain rows → (to train on, to validate on): a fifth, at most ``most``; all in both when there are fewer than ten."""
    if len(rows) < _FEW:
        return list(rows), list(rows)
    chosen = set(random.Random(f"{seed} validation").sample(range(len(rows)), min(most, len(rows) // _VALIDATION_SHARE)))
    training = [row for index, row in enumerate(rows) if index not in chosen]
    return training, [rows[index] for index in sorted(chosen)]


def _shuffled(rows: Sequence[Encoded], seed: int) -> list[Encoded]:
    """In a random order, so that the first so many are a fair sample."""
    return random.Random(f"{seed} sample").sample(list(rows), len(rows))


def _read(source: DataSource | None) -> list[Example]:
    return read_examples(source) if source is not None else []
