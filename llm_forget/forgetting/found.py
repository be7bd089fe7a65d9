"""Look at what an order names: rows, tokens, names, the model and the machine. Nothing is loaded but a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.entities import find_names
from llm_forget.data.examples import DataSource, Example, check_overlap, read_examples
from llm_forget.forgetting.order import Order
from llm_forget.memory.machine import Machine, this_machine
from llm_forget.model.load import check_model, frozen_dtype, load_tokenizer, locate_model, read_config
from llm_forget.train.default import hidden_size
from llm_forget.train.origin import base_of
from llm_forget.train.prepare import UnlearnSets, prepare

MEASURED = {"rouge_score": "ROUGE", "lm_eval": "capability"}  # package of the extra eval → what it measures


@dataclass(frozen=True)
class Found:
    """What there is.

    Attributes:
        order: the order.
        recipe: its recipe, before anything is chosen.
        config: the model's config.
        machine: the device.
        sets: the encoded rows.
        neighbours: the encoded neighbours; empty without any.
        named: forget rows whose name was found.
        without: packages that are not installed, and what they would measure.
    """

    order: Order
    recipe: UnlearnRecipe
    config: Any
    machine: Machine
    sets: UnlearnSets
    neighbours: list[Encoded]
    named: int
    without: dict[str, str]

    @cached_property
    def weights(self) -> int:
        """Number of the model's weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)
        return sum(one.numel() for one in {id(one): one for one in model.parameters()}.values())

    @property
    def width(self) -> int | None:
        """The model's hidden size."""
        return hidden_size(self.config)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that is trained on."""
        return max(len(row.input_ids) for row in [*self.sets.forget, *self.sets.retain])

    @property
    def tokens(self) -> float:
        """Mean tokens of a forget row."""
        rows = self.sets.forget
        return sum(len(row.input_ids) for row in rows) / len(rows)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights."""
        return frozen_dtype(self.recipe.model)


def look(order: Order) -> Found:
    """Read everything that an order names, and check it.

    Raises:
        UserError: the model, a file or a row cannot be used.
    """
    recipe = order.recipe()
    located = replace(recipe.model, name=locate_model(recipe.model.name))
    check_model(located)
    base_of(recipe, located.name)  # refuses a base that does not exist or has another vocabulary
    tokenizer = load_tokenizer(located)
    sets = prepare(recipe.data, recipe.encoding, tokenizer, rows=recipe.stop.rows, seed=recipe.seed)
    unique = list({one.id: one for one in sets.forget_examples}.values())
    return Found(
        order=order,
        recipe=recipe,
        config=read_config(located),
        machine=_machine(order),
        sets=sets,
        neighbours=_neighbours(order, recipe, tokenizer, unique),
        named=sum(name is not None for name in find_names(unique, sets.retain_examples)),
        without={name: what for name, what in MEASURED.items() if find_spec(name) is None},
    )


def _machine(order: Order) -> Machine:
    found = this_machine()
    return found if order.memory is None else replace(found, free=min(found.free, order.memory))


def _neighbours(order: Order, recipe: UnlearnRecipe, tokenizer: Any, forget: list[Example]) -> list[Encoded]:
    if order.neighbours is None:
        return []
    rows = read_examples(DataSource(order.neighbours))
    check_overlap(forget, rows)
    return encode_all(tokenizer, rows, recipe.encoding, role="neighbours")[0]
