"""Fixtures for the contract of a method: rows, a model that has memorised them, and scores by method name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scorer import Scorer, encoded, method_class
from torch import nn

from llm_forget.data.encode import Encoded
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def rows() -> list[Encoded]:
    return encoded(1)


@pytest.fixture(scope="session")
def memorised(rows: list[Encoded]) -> nn.Module:
    model = tiny_model(tiny_tokenizer())
    memorise(model, rows, steps=15)
    return model


@pytest.fixture(scope="session")
def scorer_of() -> Callable[..., Scorer]:
    """Return a scorer by method name; unless a reference is given, it is a model with other weights."""
    others = {row.id: row for row in encoded(2)}

    def make(name: str, reference: nn.Module | None = None) -> Scorer:
        return Scorer(method_class(name)(), reference or tiny_model(tiny_tokenizer(), seed=1), others)

    return make
