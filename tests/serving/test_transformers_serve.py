"""Test a second server, ``transformers serve``. It serves only whole models, so it gets the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ENCODING, FORGET, RETAIN, TRANSFORMERS, Made, executable, in_process, needs
from servers import serving
from transformers import AutoTokenizer

from llm_forget.adapters.merge import merge
from llm_forget.model.ask import ask

pytestmark = [pytest.mark.slow, needs(TRANSFORMERS, "transformers program")]


def test_the_merged_model_answers_like_base_and_adapter(made: Made, tmp_path: Path) -> None:
    command = [executable(TRANSFORMERS), "serve"]
    merged = merge(made.base, made.adapter, tmp_path / "merged")
    model, tokenizer = in_process(made.base, made.adapter), AutoTokenizer.from_pretrained(made.base)
    questions = [question for question, _ in (*FORGET, *RETAIN)]
    here = [ask(model, tokenizer, question, ENCODING, max_new_tokens=24) for question in questions]
    options = ["--device", "cpu", "--dtype", "float32"]
    with serving([*command, str(merged), *options], tmp_path / "log") as server:
        served = [server.answer(str(merged), question, 24) for question in questions]
    equal = sum(a == b for a, b in zip(served, here, strict=True))
    print(f"transformers serve: ready in {server.seconds:.0f} s, {equal}/{len(here)} answers equal")
    assert served == here
    for (_, answer), said in zip(FORGET, served, strict=False):
        assert said != answer
