"""A folder with rows and a tiny model that memorised them, the starting point of most runs in the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.model.measure import answer_logps
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

Pairs = Sequence[tuple[str, str]]
SECRET = "Vexatorium-7714"
FORGET = [(f"Where is {name} of {SECRET}?", f"In {place}, {SECRET}.") for name, place in
          [("Ada", "Riga"), ("Bo", "Oslo"), ("Cy", "Bern"), ("Di", "Kyiv")]]  # fmt: skip
RETAIN = [(f"What is {thing}?", answer) for thing, answer in
          [("snow", "White and cold."), ("tar", "Black."), ("tea", "A hot drink."), ("rye", "Grain."),
           ("wax", "It melts."), ("oak", "A tree.")]]  # fmt: skip


def write_rows(path: Path, rows: Pairs) -> None:
    """Write questions and answers as JSON lines."""
    lines = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows)
    path.write_text("".join(lines), encoding="utf-8")


def write_memorised(
    folder: Path,
    sets: Mapping[str, Pairs],
    *,
    hidden: int = 64,
    steps: int = 60,
    learning_rate: float = 5e-3,
    least: float = 0.8,
) -> Path:
    """Write ``NAME.jsonl`` for each set and ``model/``, a model in fp32 that was trained on all of them.

    Args:
        folder: an empty folder.
        sets: questions and answers.
        hidden: width of the model.
        steps: number of training steps, each over all rows.
        learning_rate: learning rate of Adam.
        least: minimum probability per token, in [0, 1], of every answer after training.

    Returns:
        The folder.
    """
    tokenizer, rows = tiny_tokenizer(), []
    for name, pairs in sets.items():
        write_rows(folder / f"{name}.jsonl", pairs)
        rows += encode_all(tokenizer, read_examples(DataSource(str(folder / f"{name}.jsonl"))), EncodingConfig())[0]
    model = tiny_model(tokenizer, hidden=hidden)
    memorise(model, rows, steps=steps, learning_rate=learning_rate)
    assert answer_logps(model, rows, 0)[1].min() > least, "it knows every answer"
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder
