"""vLLM serves base and exported adapter as the in-process model has them, and does with raw adapters what the doctor says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from adapter_examples import trained_adapter
from conftest import ENCODING, FORGET, RANKS, RETAIN, Made, in_process, logps
from servers import RefusedError, Server
from transformers import AutoTokenizer

from llm_forget.adapters.doctor import diagnose
from llm_forget.data.encode import encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.evaluation.ask import ask

pytestmark = pytest.mark.slow
QUESTIONS = [*FORGET, *RETAIN]
TOLERANCE = 3e-3  # of a token's log-prob in nats; fp32 on both sides, other kernels


def token_rows(made: Made) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    examples = [row for path in (made.forget, made.retain) for row in read_examples(DataSource(str(path)))]
    return [list(row.input_ids) for row in encode_all(tokenizer, examples, ENCODING)[0]]


def largest_gap(server: Server, name: str, model: Any, rows: list[list[int]]) -> float:
    """The largest difference of any token's log-prob, over all rows."""
    pairs = [zip(server.logps(name, ids), logps(model, ids), strict=True) for ids in rows]
    return max(abs(served - here) for pair in pairs for served, here in pair)


@pytest.mark.parametrize("name", ["base", "unlearned"])
def test_served_answers_and_log_probs_are_the_in_process_models(
    name: str, vllm: Server, made: Made, record_property: Any
) -> None:
    model = in_process(made.base, made.adapter if name == "unlearned" else None)
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    served = [vllm.answer(name, question, 24) for question, _ in QUESTIONS]
    here = [ask(model, tokenizer, question, ENCODING, max_new_tokens=24) for question, _ in QUESTIONS]
    gap = largest_gap(vllm, name, model, token_rows(made))
    equal = sum(a == b for a, b in zip(served, here, strict=True))
    print(f"vLLM, {name}: ready in {vllm.seconds:.0f} s, {equal}/{len(here)} answers equal, log-probs within {gap:.1e}")
    assert served == here
    assert gap <= TOLERANCE


def test_the_base_still_knows_what_the_adapter_keeps_from_being_said(vllm: Server) -> None:
    for question, answer in FORGET:
        assert vllm.answer("base", question, 24) == answer
        assert vllm.answer("unlearned", question, 24) != answer
    assert [vllm.answer("base", question, 24) for question, _ in RETAIN] == [answer for _, answer in RETAIN]


RAW: dict[str, dict[str, Any]] = {
    "plain": {},
    "negative alpha": {"lora_alpha": -3},
    "zero alpha": {"lora_alpha": 0},
    "rsLoRA": {"r": 9, "use_rslora": True},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "targets by expression": {"target_modules": r".*\.1\..*(q|up)_proj"},
    "rank pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha pattern": {"alpha_pattern": {"q_proj": 2}},
    "both patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*": 5}},
    "patterns, rsLoRA": {"rank_pattern": {"q_proj": 2}, "use_rslora": True},
    "rank above the limit": {"r": 20},
    "rank above the limit, by pattern": {"rank_pattern": {"q_proj": 20}},
    "DoRA": {"use_dora": True},
    "bias on B": {"lora_bias": True},
    "biases": {"bias": "all"},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "trained tokens": {"trainable_token_indices": [1, 2]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("config", RAW.values(), ids=RAW.keys())
def test_vllm_does_what_the_doctor_says(config: dict[str, Any], vllm: Server, made: Made, tmp_path: Path) -> None:
    """Loads: the log-probs are PEFT's. Refuses: an error. Wrong: it loads, and says something else."""
    folder = trained_adapter(made.base, tmp_path / "raw", **config)
    said = next(verdict for verdict in diagnose(made.base, folder, max_rank=RANKS).verdicts if verdict.server == "vLLM")
    try:
        vllm.load("raw", folder)
        gap = largest_gap(vllm, "raw", in_process(made.base, folder), token_rows(made)[:4])
        vllm.unload("raw")
    except RefusedError as error:
        print(f"vLLM refuses: {error}")
        assert said.status == "refuses", said
        return
    print(f"vLLM loads: log-probs within {gap:.1e} of PEFT's")
    assert not math.isnan(gap)
    assert said.status == ("loads" if gap <= TOLERANCE else "wrong"), said
