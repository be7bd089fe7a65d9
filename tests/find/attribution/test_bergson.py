"""The optional backend: refused without the library, and against the gradients of this package with it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from evaluation_examples import Rank, random_rows

from llm_forget.errors import MissingExtraError, UserError
from llm_forget.find.attribution.bergson import Bergson
from llm_forget.testing import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
INSTALLED = importlib.util.find_spec("bergson") is not None
installed = pytest.mark.skipif(not INSTALLED, reason="needs pip install 'llm-forget[bergson]'")


@pytest.mark.skipif(INSTALLED, reason="bergson is installed")
def test_the_missing_package_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"llm-forget\[bergson\]"):
        Bergson().row_scores(tiny_model(TOKENIZER, hidden=16), [], [], pad_token_id=0)


@installed
def test_a_row_is_most_like_itself_and_the_model_is_as_before() -> None:
    model, rows = tiny_model(TOKENIZER, hidden=16), random_rows(8, len(TOKENIZER))
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    for number, row in enumerate(rows):
        scores = Bergson(projection_dim=8).row_scores(model, rows, [row], pad_token_id=0)
        assert int(np.argmax(scores)) == number
        assert scores[number] == pytest.approx(1.0, abs=1e-3)
    assert {name: value.requires_grad for name, value in model.named_parameters()} == flags
    assert all(value.grad is None for value in model.parameters())


@installed
def test_several_processes_are_refused() -> None:
    with pytest.raises(UserError, match="one process, and 2 were started"):
        Bergson().row_scores(tiny_model(TOKENIZER, hidden=16), [], [], pad_token_id=0, accelerator=Rank(2, 0))
