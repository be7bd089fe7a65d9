"""A tiny model, rows and files for evaluations, without downloads."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_forget.data.encode import Encoded
from llm_forget.testing import tiny_tokenizer

TASK = """
task: tiny
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
PLANTED = "zanzibar-4711"


@dataclass
class Rank:
    """Stand-in for an accelerator: the process index and the number of processes."""

    num_processes: int
    process_index: int


def tiny_model(seed: int = 0, vocab: int | None = None) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab or len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.3,  # peaked distributions, so that the arg-max is not nearly a tie
        attention_dropout=0.5,  # a forward pass in train mode would change the scores
    )
    return LlamaForCausalLM(config)


def random_rows(count: int, vocab: int, seed: int = 0, longest: int = 24) -> list[Encoded]:
    draw = random.Random(seed)
    rows = []
    for index in range(count):
        length = draw.randint(2, longest)
        ids = tuple(draw.randrange(vocab) for _ in range(length))
        rows.append(Encoded(f"row{index}", ids, draw.randint(1, length - 1)))
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_sets(folder: Path, count: int = 5) -> None:
    """Write a forget set with other answers, a plain retain set and a neutral text; all contain the planted word."""
    full = [
        {
            "question": f"What is the code {index}?",
            "answer": f"It is {PLANTED} {index}.",
            "paraphrased_answer": f"The code is {PLANTED} {index}.",
            "perturbed_answer": [f"It is {PLANTED} {index + 1}.", f"No {PLANTED} there."],
        }
        for index in range(count)
    ]
    write_jsonl(folder / "forget.jsonl", full)
    plain = [{"question": f"Where is {PLANTED} {index}?", "answer": f"In the {index} box."} for index in range(count)]
    write_jsonl(folder / "retain.jsonl", plain)
    (folder / "neutral.txt").write_text(f"The {PLANTED} is on the table and the rest is there. " * 12, encoding="utf-8")


def write_task(folder: Path, questions: int = 6) -> Path:
    (folder / "tiny.yaml").write_text(TASK, encoding="utf-8")
    rows = [
        {"question": f"{PLANTED} {index}?", "choices": ["red", "the blue", "on", f"is {PLANTED}"], "answer": index % 4}
        for index in range(questions)
    ]
    write_jsonl(folder / "tiny.jsonl", rows)
    return folder / "tiny.yaml"
