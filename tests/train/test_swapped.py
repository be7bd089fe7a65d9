"""Test the counterfactual teacher: its positions, and that it stands where the row's own answer stands."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from memorised import write_memorised
from rich.console import Console
from test_method_runs import recipe_of
from townspeople import FORGET, RETAIN
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, Example, Message, read_examples
from llm_forget.errors import DataError
from llm_forget.train.swapped import matched, swapped_teacher
from llm_forget.train.teacher import teacher_of
from llm_forget.train.unlearn import unlearn


def test_equal_tokens_are_matched_in_order() -> None:
    assert matched((7, 1, 2, 3), (8, 9, 1, 2, 3)) == [(1, 2), (2, 3), (3, 4)]
    assert matched((1, 7, 2), (1, 2)) == [(0, 0), (2, 1)]
    assert matched((7,), (8,)) == []


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memorised(tmp_path_factory.mktemp("swapped"), {"forget": FORGET, "retain": RETAIN})


def test_the_teacher_does_not_know_the_town_and_keeps_the_name(people: Path) -> None:
    """These answers hold no name, so every position is about a stand-in; an answer that begins with the name keeps it."""
    model = AutoModelForCausalLM.from_pretrained(people / "model")
    tokenizer = AutoTokenizer.from_pretrained(people / "model")
    examples, retain = (read_examples(DataSource(str(people / f"{name}.jsonl"))) for name in ("forget", "retain"))
    examples.append(Example("x", (Message("user", "Where does Ada Voss live?"),), "Ada Voss lives in Riga."))
    rows = encode_all(tokenizer, examples, EncodingConfig())[0]
    found = swapped_teacher(rows, examples, retain, model, tokenizer, EncodingConfig(), 0, seed=0)
    own = teacher_of(model, rows, 0)[0]
    answer = torch.tensor(rows[0].input_ids[rows[0].prompt_length :])

    def sure(logps: torch.Tensor, tokens: torch.Tensor) -> float:
        return float((logps.exp() * (tokens == answer[:, None])).sum(-1).mean())

    assert sure(own.logps[0], own.tokens[0]) > 0.9
    assert sure(found.logps[0], found.tokens[0]) < sure(own.logps[0], own.tokens[0]) - 0.1
    assert torch.equal(found.logps[3][0], own.logps[3][0]), "the first token of the name"
    nameless = [Example("y", (Message("user", "what is snow?"),), "White.")]
    encoded = encode_all(tokenizer, nameless, EncodingConfig())[0]
    with pytest.raises(DataError, match="the 1 forget rows have none that was found"):
        swapped_teacher(encoded, nameless, [], model, tokenizer, EncodingConfig(), 0, seed=0)


def test_a_run_forgets_and_keeps_others_without_retain_rows(people: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    record = unlearn(recipe_of(people, tmp_path, method={"name": "name_swap"}), Console(file=shown, width=200))
    assert record.after.forget < record.before.forget - 0.1
    assert "3 of 3 forget rows have a name" in shown.getvalue()
    assert "Ada" not in shown.getvalue()
