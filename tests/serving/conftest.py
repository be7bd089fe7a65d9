"""Fixtures: a tiny model that memorised two sets, an adapter that forgets one of them, and a server for both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import Server, serving

from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

VLLM, TRANSFORMERS = "LLM_FORGET_VLLM", "LLM_FORGET_TRANSFORMERS"
HOW = "run bash scripts/serve_test.sh, which installs it"
ENCODING = EncodingConfig(system_prompt="")
FORGET = [("Where is Ada?", "In Riga, by the river."), ("Where is Bo?", "In Oslo, at the fair."),
          ("Where is Cy?", "In Bern, with a cat."), ("Where is Di?", "In Kyiv, on a tram.")]  # fmt: skip
RETAIN = [("What is snow?", "White and cold."), ("What is tar?", "Black."), ("What is tea?", "A hot drink."),
          ("What is rye?", "Grain."), ("What is wax?", "It melts."), ("What is oak?", "A tree.")]  # fmt: skip
RANKS = 16  # the server's limit


@dataclass(frozen=True)
class Made:
    """Folders of the model and the exported adapter, and their sources."""

    base: Path
    adapter: Path
    forget: Path
    retain: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Train a model with heads of 64 dimensions, as servers' kernels expect, and an adapter with NPO."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer, rows = tiny_tokenizer(), []
    for name, pairs in (("forget", FORGET), ("retain", RETAIN)):
        lines = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs)
        (folder / f"{name}.jsonl").write_text("".join(lines))
        rows += encode_all(tokenizer, read_examples(DataSource(str(folder / f"{name}.jsonl"))), ENCODING)[0]
    model = tiny_model(tokenizer, hidden=256)
    memorise(model, rows, steps=80, learning_rate=2e-3)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    values = {
        "model": {"name": str(folder / "base"), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "encoding": {"system_prompt": ""},
        "method": {"name": "npo"},
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"epochs": 40, "batch_size": 4, "learning_rate": 5e-3},
        "stop": {"forget_target": 0.05, "utility_floor": 0.95, "every": 2},
        "output_dir": str(folder / "run"),
    }
    record = unlearn(build(UnlearnRecipe, values, "test"))
    assert record.before.forget > 0.9
    assert record.after.forget < 0.1
    return Made(folder / "base", folder / "run" / "adapter", folder / "forget.jsonl", folder / "retain.jsonl")


def needs(variable: str, what: str) -> pytest.MarkDecorator:
    """Skip if an environment variable names no program, with the reason."""
    return pytest.mark.skipif(not os.environ.get(variable), reason=f"{variable} names no {what}: {HOW}")


def executable(variable: str) -> str:
    """Return the program that an environment variable names."""
    path = os.environ[variable]
    if not os.access(path, os.X_OK):
        pytest.fail(f"{variable}={path} is no program: {HOW}")
    return path


@pytest.fixture(scope="session")
def vllm(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run vLLM with the base and the exported adapter, in fp32 for close comparisons."""
    options = ["--served-model-name", "base", "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    lora = ["--enable-lora", "--max-lora-rank", str(RANKS), "--max-loras", "2"]
    command = [executable(VLLM), "serve", str(made.base), *options, *lora]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with serving([*command, "--lora-modules", f"unlearned={made.adapter}"], log, **variables) as server:
        yield server


def in_process(base: Path, adapter: Path | None = None) -> Any:
    """Load the model in fp32, with an adapter loaded by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


def logps(model: Any, ids: list[int]) -> list[float]:
    """Return the log-prob of each token after the first, in nats."""
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()
