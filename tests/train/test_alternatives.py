"""Test alternative answers: drawn from a list by the seed, read from a column, or generated; and never written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_forget.config import AlternativeConfig
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import Example, Message
from llm_forget.errors import DataError, RecipeError
from llm_forget.methods.alt_npo import AltNPO
from llm_forget.methods.dpo import DPO
from llm_forget.methods.npo import NPO
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train import alternatives
from llm_forget.train.alternatives import alternative_source, model_answers, read_refusals, written_answers

ROWS = [Example(f"id{row}", (Message("user", f"Who is {row}?"),), f"Answer {row}.") for row in range(40)]
WITH_COLUMN = [Example(row.id, row.prompt, row.answer, alternative=f"Other {row.id}.") for row in ROWS]


def source(method: Any, rows: list[Example], **config: Any) -> str | None:
    return alternative_source(AlternativeConfig(**config), method, rows)


def test_the_shipped_refusals_are_many_and_distinct() -> None:
    ours = read_refusals()
    assert 60 <= len(ours) <= 100
    assert len({line.casefold() for line in ours}) == len(ours)
    assert all(line[0].isupper() and line.endswith(".") and len(line) < 80 for line in ours)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("idk.txt", b"I am not sure.\r\n\n No. \n"),
        ("idk.jsonl", b"I am not sure.\nNo.\n"),
        ("idk.jsonl", b'{"text": "I am not sure."}\n{"text": "No."}\n'),
        ("idk.txt", b'{"id": 1, "refusal": "I am not sure."}\n{"id": 2, "refusal": "No."}\n'),
        ("idk.json", b'[\n  "I am not sure.",\n  "No."\n]'),
        ("idk.json", b'[{"answer": "I am not sure."}, {"answer": "No."}]'),
        ("idk.jsonl", b'"I am not sure."\n"No."\n'),
        ("idk.csv", b"refusal\nI am not sure.\nNo.\n"),
        ("idk.txt", "\ufeffI am not sure.\nNo.".encode("utf-16-le")),
    ],
)
def test_lists_of_refusals_in_any_layout(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_refusals(str(tmp_path / name)) == ["I am not sure.", "No."]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": "x", "b": "y"}\n', r"idk:1: holds no single text"),
        ('{"text": "x"}\n{"text": \n', r"idk:2: not valid JSON"),
        ('{"text": "x\n', r"idk: begins like JSON and is not valid JSON"),
        ('[\n"x",\n"y"\n', r"idk: begins like JSON and is not valid JSON"),
        ("[1]", r"idk, item 1: holds no single text"),
        (" \n", "has no refusals"),
    ],
)
def test_lists_that_would_be_taught_as_json_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "idk").write_text(content)
    with pytest.raises(RecipeError, match=said):
        read_refusals(str(tmp_path / "idk"))


def test_the_choice_depends_only_on_the_seed_and_the_example() -> None:
    chosen = written_answers("refusals", AlternativeConfig(), ROWS, seed=0)
    assert chosen == written_answers("refusals", AlternativeConfig(), ROWS[::-1], seed=0)[::-1], "whatever the order"
    assert chosen != written_answers("refusals", AlternativeConfig(), ROWS, seed=1)
    assert len(set(chosen)) > 20, "and varied"
    assert set(chosen) <= set(read_refusals())


def test_sources_of_alternatives() -> None:
    assert source(NPO(), ROWS) is None
    assert source(DPO(), ROWS) == "refusals"
    assert source(AltNPO(), ROWS) == "model"
    assert source(DPO(), WITH_COLUMN) == "column"
    assert source(AltNPO(), WITH_COLUMN) == "column"
    assert source(DPO(), WITH_COLUMN, source="refusals") == "refusals"
    assert source(DPO(), WITH_COLUMN, path="mine.txt") == "refusals"
    assert source(DPO(), ROWS, source="model") == "model"
    assert written_answers("column", AlternativeConfig(), WITH_COLUMN, 0)[3] == "Other id3."


def test_a_column_with_gaps_is_named() -> None:
    with pytest.raises(DataError, match=r"40 of 41 forget rows have no `alternative` \(the first: example id0\)"):
        source(DPO(), [*ROWS, WITH_COLUMN[0]], source="column")


def test_a_custom_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("No comment.\n\n  Ask my lawyer.  \n")
    assert read_refusals(str(file)) == ["No comment.", "Ask my lawyer."]
    file.write_text("\n")
    with pytest.raises(RecipeError, match=r"mine\.txt has no refusals"):
        read_refusals(str(file))
    file.write_bytes(b"No.\n\xe9t\xe9\n")
    with pytest.raises(RecipeError, match=r"mine\.txt:2: not UTF-8"):
        read_refusals(str(file))
    with pytest.raises(RecipeError, match=r"gone\.txt: cannot be read"):
        read_refusals(str(tmp_path / "gone.txt"))
    with pytest.raises(ValueError, match="source is model"):
        AlternativeConfig(source="model", path="mine.txt")
    with pytest.raises(ValueError, match="temperature is 0"):
        AlternativeConfig(temperature=0)


def test_generation_depends_on_the_seed_and_does_not_change_the_model() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer).train()
    before, state = model.generation_config, torch.get_rng_state()
    config = AlternativeConfig(source="model", max_new_tokens=6)
    first, again, other = (
        model_answers(model, tokenizer, ROWS[:5], config, EncodingConfig(), seed)[0] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert all(text.strip() for text in first)
    assert model.training
    assert model.generation_config is before
    assert torch.equal(torch.get_rng_state(), state), "training draws the numbers that it would have drawn"


def test_known_or_empty_answers_are_sampled_again_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked, seeds = ROWS[:3], [], []

    def sample(_: Any, __: Any, prompts: Any, *, seed: int, **___: Any) -> list[list[str]]:
        asked.append(len(prompts))
        seeds.append(seed)
        return [[[""], ["answer  1."], ["Something else."]], [[""], ["Else."]], [[""]]][len(asked) - 1]

    monkeypatch.setattr(alternatives, "sample_answers", sample)
    model = tiny_model(tiny_tokenizer())
    answers, refused = model_answers(model, tiny_tokenizer(), rows, AlternativeConfig(), EncodingConfig(), 7)
    assert asked == [3, 2, 1]
    assert len(set(seeds)) == 3, "each try draws other numbers"
    assert answers[1:] == ["Else.", "Something else."]
    assert answers[0] in read_refusals()
    assert refused == 1
