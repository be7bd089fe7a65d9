"""Attribution by unlearning on a model that has memorised its rows."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from evaluation_examples import Rank

from llm_forget.data.encode import Encoded, EncodingConfig, encode
from llm_forget.data.examples import Example, Message
from llm_forget.errors import UserError
from llm_forget.find.attribution.embeddings import word_embeddings
from llm_forget.find.attribution.gradients import Gradients
from llm_forget.find.attribution.unlearning import Unlearning, row_losses
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PLACES = {"Ada": "Riga", "Bo": "Oslo", "Cy": "Bern", "Di": "Kyiv", "Ed": "Rome", "Fay": "Lima"}


def encoded(question: str, answer: str) -> Encoded:
    return encode(TOKENIZER, Example(question, (Message("user", question),), answer), EncodingConfig())


ROWS = [
    row
    for name, place in PLACES.items()
    for row in (encoded(f"Where is {name}?", f"In {place}."), encoded(f"Home of {name}", f"{place}, they say."))
]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    made = tiny_model(TOKENIZER)
    memorise(made, ROWS, steps=80)
    return made


@pytest.mark.parametrize("kind", [Unlearning(), Gradients()])
def test_the_rows_that_taught_an_answer_come_first(kind: Unlearning | Gradients, model: torch.nn.Module) -> None:
    """The answer's own row first, and the row with the same fact in other words before most rows about others."""
    seconds = []
    for number in range(len(PLACES)):
        scores = kind.row_scores(model, ROWS, [ROWS[2 * number]], pad_token_id=0)
        order = np.argsort(-scores).tolist()
        assert 2 * number in order[:2]
        seconds.append(order.index(2 * number + 1))
    assert np.mean(seconds) < 4  # 6 by chance


def test_the_model_is_as_before_and_the_processes_share_the_rows(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = Unlearning().row_scores(model, ROWS, ROWS[:1], pad_token_id=0, batch_tokens=60)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    shares = []
    monkeypatch.setattr(
        "llm_forget.model.batching.sum_over_processes", lambda values, _: shares.append(values) or values
    )
    whole = row_losses(model, ROWS, pad_token_id=0, batch_tokens=60)
    for index in range(2):
        row_losses(model, ROWS, pad_token_id=0, batch_tokens=60, accelerator=Rank(2, index))
    np.testing.assert_allclose(shares[1] + shares[2], whole, rtol=1e-5)
    assert ((shares[1] == 0) != (shares[2] == 0)).all()
    assert np.isfinite(alone).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_is_lost_by_what_was_asked_and_others_less(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """In fp32 copies of the embeddings, so that small steps are not rounded away."""
    cast = copy.deepcopy(model).to(dtype)
    held = {name: value.clone() for name, value in cast.state_dict().items()}
    before = row_losses(cast, ROWS, pad_token_id=0)
    with word_embeddings(cast) as weights:
        assert {value.dtype for value in weights} == {torch.float32}
        assert [value for value in cast.parameters() if value.requires_grad] == weights
        Unlearning(rise=0.2).unlearn(cast, weights, ROWS[:1], pad_token_id=0)
        risen = row_losses(cast, ROWS, pad_token_id=0) - before
    assert risen[0] == pytest.approx(0.2, rel=0.25)
    assert risen[0] > risen[2:].max()
    assert all(torch.equal(value, held[name]) for name, value in cast.state_dict().items())


def test_rows_and_answers_without_a_scored_token(model: torch.nn.Module) -> None:
    bare = Encoded("prompt", ROWS[0].input_ids[:4], 4)
    scores = Unlearning().row_scores(model, [*ROWS[:2], bare], ROWS[:1], pad_token_id=0)
    assert np.isnan(scores).tolist() == [False, False, True]
    with pytest.raises(UserError, match="no token that can be scored"):
        Unlearning().row_scores(model, ROWS, [bare], pad_token_id=0)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rise": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="attribution by unlearning"):
        Unlearning(**settings)  # type: ignore[arg-type]
