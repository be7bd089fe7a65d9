"""Test that vLLM matches the in-process model for base and exported adapter, and the doctor's prediction for raw adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapter_examples import trained_adapter
from conftest import ENCODING, FORGET, RANKS, RETAIN, VLLM, Made, in_process, logps, needs
from safetensors.torch import load_file, save_file
from servers import RefusedError, Server
from torch import Tensor
from transformers import AutoTokenizer

from llm_forget.adapters.doctor import diagnose
from llm_forget.data.encode import encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import AdapterError
from llm_forget.model.ask import ask

pytestmark = [pytest.mark.slow, needs(VLLM, "vllm program")]
QUESTIONS = [*FORGET, *RETAIN]
TOLERANCE = 3e-3  # tolerance of a token's log-prob in nats; fp32 on both sides, different kernels


def token_rows(made: Made) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(made.base)
    examples = [row for path in (made.forget, made.retain) for row in read_examples(DataSource(str(path)))]
    return [list(row.input_ids) for row in encode_all(tokenizer, examples, ENCODING)[0]]


def largest_gap(server: Server, name: str, model: Any, rows: list[list[int]]) -> float:
    """Return the largest difference of any token's log-prob, over all rows."""
    pairs = [zip(server.logps(name, ids), logps(model, ids), strict=True) for ids in rows]
    return max(abs(served - here) for pair in pairs for served, here in pair)


@pytest.mark.parametrize("name", ["base", "unlearned"])
def test_served_answers_and_log_probs_equal_those_in_process(
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


def test_the_base_still_knows_the_answers_that_the_adapter_forgets(vllm: Server) -> None:
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


def edited(**changes: Any) -> Callable[[Path], None]:
    """Return a function that changes adapter_config.json."""

    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def rewritten(change: Callable[[str, Tensor], tuple[str, Tensor] | None]) -> Callable[[Path], None]:
    """Return a function that changes, renames or drops tensors."""

    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(dict(new for old in load_file(path).items() if (new := change(*old)) is not None), path)

    return edit


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


DAMAGED: dict[str, Callable[[Path], None]] = {
    "another rank in the config": edited(r=5),
    "alpha as text": edited(lora_alpha="x"),
    "OLoRA": edited(init_lora_weights="olora"),
    "LoftQ": edited(init_lora_weights="loftq"),
    "one A missing": rewritten(lambda n, t: None if "layers.0.self_attn.q_proj.lora_A" in n else (n, t)),
    "a stray tensor": rewritten(lambda n, t: ("something", t) if "layers.0.self_attn.q_proj.lora_A" in n else (n, t)),
    "a layer too many": rewritten(lambda n, t: (n.replace("layers.1.", "layers.7."), t)),
    "another width": rewritten(lambda n, t: (n, t[:, :-1].contiguous() if "lora_A" in n else t)),
    "cut short": cut_short,
}


@pytest.mark.parametrize("config", RAW.values(), ids=RAW.keys())
def test_vllm_behaves_as_the_doctor_predicts(config: dict[str, Any], vllm: Server, made: Made, tmp_path: Path) -> None:
    """Loads: the log-probs equal PEFT's. Refuses: an error. Wrong: it loads, but the log-probs differ."""
    folder = trained_adapter(made.base, tmp_path / "raw", **config)
    assert what_vllm_does(vllm, made, folder, meant=folder) == doctor_says(made, folder)


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
def test_vllm_behaves_as_the_doctor_predicts_for_damaged_adapters(
    damage: Callable[[Path], None], vllm: Server, made: Made, tmp_path: Path
) -> None:
    """The intended adapter is the one before the damage."""
    folder = trained_adapter(made.base, tmp_path / "raw")
    meant = Path(shutil.copytree(folder, tmp_path / "meant"))
    damage(folder)
    assert what_vllm_does(vllm, made, folder, meant=meant) == doctor_says(made, folder)


def test_vllm_ignores_unknown_keys(vllm: Server, made: Made, tmp_path: Path) -> None:
    """It serves the factors as plain LoRA; the doctor cannot know the meaning of the key, so it reports this as wrong."""
    folder = trained_adapter(made.base, tmp_path / "raw")
    meant = Path(shutil.copytree(folder, tmp_path / "meant"))
    for key, value in (
        ("twist", 1),
        ("kasa_config", {"k": 1}),
        ("peft_type", "LOHA"),
        ("init_lora_weights", "lora_ga"),
    ):
        edited(**{key: value})(shutil.copytree(folder, tmp_path / key))
        assert what_vllm_does(vllm, made, tmp_path / key, meant=meant) == "loads"
        assert doctor_says(made, tmp_path / key) == "wrong"


def what_vllm_does(server: Server, made: Made, folder: Path, *, meant: Path) -> str:
    """Return whether vLLM refuses an adapter, and if not, whether its log-probs equal PEFT's with the intended adapter."""
    try:
        server.load("raw", folder)
        gap = largest_gap(server, "raw", in_process(made.base, meant), token_rows(made)[:4])
        server.unload("raw")
    except RefusedError as error:
        print(f"vLLM refuses: {error}")
        return "refuses"
    print(f"vLLM loads: log-probs within {gap:.1e} of PEFT's")
    return "loads" if gap <= TOLERANCE else "wrong"


def doctor_says(made: Made, folder: Path) -> str:
    try:
        found = diagnose(made.base, folder, max_rank=RANKS)
    except AdapterError:
        return "refuses"
    return next(verdict.status for verdict in found.verdicts if verdict.server == "vLLM")
