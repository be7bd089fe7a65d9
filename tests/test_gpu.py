"""Test on a GPU: the same numbers as on a CPU, memory as planned, and the launchers that refuse a CPU."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from card_runs import losses_of, recipe_of
from places import HELPERS, ROOT
from rich.console import Console
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import llm_forget
import llm_forget.train.checkpoint
from llm_forget.config import AdapterConfig, UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.memory.plan import plan
from llm_forget.model import flex
from llm_forget.model.blocks import add_adapter
from llm_forget.model.fused_head import fused_head
from llm_forget.model.fused_lora import fused_lora
from llm_forget.model.logprobs import score_answers
from llm_forget.model.packing import packed_attention
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build, to_yaml
from llm_forget.utils.plugins import names_in

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
METHODS = names_in("llm_forget.methods")
SYSTEM = (11, 12, 13, 14)
ROWS = [
    Encoded("a", (*SYSTEM, 5, 9, 3, 8, 8, 1), 7),
    Encoded("b", (*SYSTEM, 5, 9, 3, 2, 1), 7),
    Encoded("c", (*SYSTEM, 6, 4, 4, 6, 1, 2, 3, 4, 5, 1), 9),
    Encoded("d", (7, 2), 1),
]
CONSOLE = Console(file=io.StringIO())


def environment(**changes: str) -> dict[str, str]:
    paths = os.pathsep.join([str(Path(llm_forget.__path__[0]).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **changes}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create data with alternative answers, and a model that memorised it, with width 128 so that it can be quantised."""
    folder, rows = tmp_path_factory.mktemp("card"), []
    tokenizer = tiny_tokenizer()
    for name, words in (("forget", "Ada Bo Cy Di"), ("retain", "snow tar tea rye")):
        path = folder / f"{name}.jsonl"
        lines = [
            {"question": f"What of {w}?", "answer": f"{w} " * 2, "alternative": "Nobody knows."} for w in words.split()
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows += encode_all(tokenizer, read_examples(DataSource(str(path))), EncodingConfig())[0]
    model = tiny_model(tokenizer, hidden=128)
    memorise(model, rows, steps=30, learning_rate=5e-3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def adapted(attention: str) -> Any:
    """Return a tiny model with an adapter that has an effect."""
    base = tiny_model(tiny_tokenizer(), seed=3)
    base.set_attn_implementation(attention)
    model = add_adapter(base, AdapterConfig(rank=2, alpha=2))
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    return model


def scores_and_gradients(model: Any, *, is_packed: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = collate(ROWS, 0)
    device = next(model.parameters()).device
    model.zero_grad()
    with packed_attention(model, wanted=is_packed) as on:
        assert on == is_packed
        found = score_answers(model, {name: value.to(device) for name, value in batch.items()})
        found.mean_logps.sum().backward()
    kept = [value.grad.cpu() for value in model.parameters() if value.grad is not None]
    return found.mean_logps.detach().float().cpu(), kept


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_scores_and_gradients_equal_those_of_a_cpu(attention: str, is_packed: bool) -> None:
    model = adapted(attention)
    on_cpu = scores_and_gradients(copy.deepcopy(model), is_packed=False)
    on_card = scores_and_gradients(model.cuda(), is_packed=is_packed)
    torch.testing.assert_close(on_card[0], on_cpu[0], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(on_card[1], on_cpu[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_fused_head_gives_the_usual_log_probs_and_gradients() -> None:
    pytest.importorskip("liger_kernel", reason="needs liger-kernel: pip install 'llm-forget[kernels]'")
    model = adapted("sdpa").cuda()
    usual = scores_and_gradients(model, is_packed=False)
    with fused_head(model) as used:
        assert used
        fused = scores_and_gradients(model, is_packed=False)
    torch.testing.assert_close(fused[0], usual[0], rtol=0, atol=1e-5)
    for ours, theirs in zip(fused[1], usual[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_adapters_in_one_operation_give_the_usual_log_probs_and_gradients() -> None:
    model = adapted("sdpa").cuda()
    usual = scores_and_gradients(model, is_packed=True)
    with fused_lora(model) as count:
        assert count > 0
        fused = scores_and_gradients(model, is_packed=True)
    torch.testing.assert_close(fused[0], usual[0], rtol=0, atol=1e-5)
    for ours, theirs in zip(fused[1], usual[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_gives_the_usual_log_probs_and_gradients(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled, with two lengths of the sequence: long rows that share a prefix, and two of them."""
    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).to("cuda", dtype).eval()
    start = tuple((7 * place) % 61 for place in range(1000))
    rows = [Encoded(str(one), (*start[: 1000 - one], *[61] * (100 + one)), 990 - one) for one in (0, 1, 300)]
    used: list[int] = []
    plain = flex.flex
    monkeypatch.setattr(flex, "flex", lambda query, *given: used.append(query.shape[2]) or plain(query, *given))
    for some in (rows, rows[:2]):
        found = []
        for devices in ((), ("cuda",)):
            monkeypatch.setattr(flex, "_DEVICES", devices)
            used.clear()
            said: list[str] = []
            model.zero_grad()
            with packed_attention(model, say=said.append) as on:
                assert on
                scores = score_answers(model, {name: value.cuda() for name, value in collate(some, 0).items()})
                scores.mean_logps.sum().backward()
            assert not said
            assert len(used) == (3 if devices else 0)
            gradient = torch.cat(
                [value.grad.flatten().float() for value in model.parameters() if value.grad is not None]
            )
            found.append((scores.mean_logps.detach().float(), gradient))
        close = 1e-4 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=close)
        assert float((found[1][1] - found[0][1]).norm() / found[0][1].norm()) < close


def test_packed_bf16_is_as_exact_as_padded_bf16() -> None:
    """Packed rows in bf16 differ from padded rows in fp32 by at most three times as much as padded rows in bf16."""
    model = adapted("sdpa").cuda()
    exact, _ = scores_and_gradients(model, is_packed=False)
    with torch.autocast("cuda", torch.bfloat16):
        padded, packed = (scores_and_gradients(model, is_packed=kind)[0] for kind in (False, True))
    bound = max(3 * float((padded - exact).abs().max()), 1e-3)
    assert float((packed - exact).abs().max()) <= bound


def test_every_method_takes_the_steps_of_a_cpu(things: Path, tmp_path: Path) -> None:
    """Four steps of SGD in fp32: losses to 1e-3 and adapters to 1e-4 of those of a process that sees no GPU."""
    command = [sys.executable, str(HELPERS / "card_runs.py"), str(things), str(tmp_path / "cpu"), *METHODS]
    done = subprocess.run(
        command, env=environment(CUDA_VISIBLE_DEVICES=""), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wrong = {}
    for name in METHODS:
        unlearn(recipe_of(things, tmp_path / "card", name), CONSOLE)
        ours, theirs = (losses_of(tmp_path / where / name) for where in ("card", "cpu"))
        adapters = [
            load_file(tmp_path / where / name / "adapter" / "adapter_model.safetensors") for where in ("card", "cpu")
        ]
        gap = max(float((adapters[0][key] - value).abs().max()) for key, value in adapters[1].items())
        if ours != pytest.approx(theirs, rel=1e-3, abs=1e-4) or gap > 1e-4:
            wrong[name] = (ours, theirs, gap)
    assert not wrong


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "gradient_checkpointing": "selective"}},
        {"train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "gradient_checkpointing": True}},
        {"train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "compile": True}},
        {"adapter": None, "train": {"epochs": 6, "batch_size": 4, "learning_rate": 2e-3}, "retain": {"name": "kl"}},
        {
            "model": {"quantization": "nf4"},
            "train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "optimizer": "paged_adamw_8bit"},
        },
        {
            "model": {"quantization": "int8"},
            "train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "optimizer": "adamw_bnb_8bit"},
        },
    ],
    ids=["lora", "selective", "checkpointing", "compile", "full", "nf4", "int8"],
)
def test_a_run_with_recipe_settings_forgets(changes: dict[str, Any], things: Path, tmp_path: Path) -> None:
    """The base is in bf16 or quantised."""
    if "quantization" in changes.get("model", {}):
        pytest.importorskip("bitsandbytes")
    values = {"train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2}, **changes}
    values["model"] = {"name": str(things / "model"), **changes.get("model", {})}
    record = unlearn(recipe_of(things, tmp_path, "npo", **values), CONSOLE)
    assert record.after.forget < record.before.forget - 0.1
    assert (tmp_path / "npo" / "result.json").is_file()


def test_subtraction_with_projection_runs_on_a_gpu(things: Path, tmp_path: Path) -> None:
    method = {"name": "adapter_subtraction", "strength": 1.0, "heal_steps": 4, "project": True}
    record = unlearn(recipe_of(things, tmp_path, "adapter_subtraction", method=method, alternative={}), CONSOLE)
    assert record.steps > 0
    assert record.after.forget < record.before.forget


def test_an_interrupted_run_resumes_to_the_same_adapter(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, which uses the GPU's random numbers; to 1e-4, since sums on a GPU have no fixed order."""
    train = {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "save_steps": 1}
    changes: dict[str, Any] = {"train": train, "adapter": {"rank": 4, "alpha": 8, "dropout": 0.3}}
    unlearn(recipe_of(things, tmp_path / "alone", "npo", **changes), CONSOLE)
    real, count = llm_forget.train.checkpoint.write_checkpoint, []

    def write(*arguments: Any) -> Path:
        count.append(real(*arguments))
        if len(count) == 3:
            raise KeyboardInterrupt
        return count[-1]

    with monkeypatch.context() as patch:
        patch.setattr("llm_forget.train.resume.write_checkpoint", write)
        with pytest.raises(KeyboardInterrupt):
            unlearn(recipe_of(things, tmp_path / "cut", "npo", **changes), CONSOLE)
    unlearn(recipe_of(things, tmp_path / "cut", "npo", **changes, resume=True), CONSOLE)
    ours, theirs = (
        load_file(tmp_path / where / "npo" / "adapter" / "adapter_model.safetensors") for where in ("cut", "alone")
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)


CASES: dict[str, dict[str, Any]] = {
    "lora": {"train": {"batch_size": 8}},
    "checkpointing and kl": {"retain": {"name": "kl"}, "train": {"batch_size": 8, "gradient_checkpointing": True}},
    "selective": {"train": {"batch_size": 8, "gradient_checkpointing": "selective"}},
    "top third": {"adapter": {"rank": 16, "alpha": 16, "top_share": 0.34}, "train": {"batch_size": 8}},
    "full": {"adapter": None, "train": {"batch_size": 8}},
}


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_within_15_percent_of_the_memory_allocated_on_a_gpu(case: str, tmp_path: Path) -> None:
    """Measure the peak of a run of two steps on rows truncated to 192 tokens, with a model of about 90 million weights."""
    config = LlamaConfig(
        vocab_size=16384,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        dtype="float32",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for part in ("forget", "retain"):
        rows = [{"question": f"{part[0]}{row}", "answer": f"{row}{part} " * 200} for row in range(16)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"name": str(tmp_path / "model")},
        "data": {part: {"path": str(tmp_path / f"{part}.jsonl")} for part in ("forget", "retain")},
        "encoding": {"max_length": 192, "truncate": True},
        "method": {"name": "npo"},
        "adapter": {"rank": 16, "alpha": 16},
        "stop": {"forget_target": None, "utility_floor": 0.0, "rows": 1, "every": 99},
        "output_dir": str(tmp_path / "run"),
        **CASES[case],
    }
    values["train"] = {"epochs": 1, "learning_rate": 1e-4, **CASES[case]["train"]}
    recipe = build(UnlearnRecipe, values, "test")
    planned = plan(recipe, on_card=True)
    gc.collect()  # memory left by an earlier run would be freed during this one and reduce the measured peak
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    unlearn(recipe, CONSOLE)
    measured = torch.cuda.max_memory_allocated() - before
    print(f"{case}: planned {planned.total / 1e6:.0f} MB, allocated {measured / 1e6:.0f} MB")
    assert planned.total == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("launcher", ["single", "fsdp2"])
def test_the_shipped_launchers_take_the_steps_of_a_plain_run(launcher: str, things: Path, tmp_path: Path) -> None:
    """The shipped configurations on one GPU; FSDP2 with one shard."""
    unlearn(recipe_of(things, tmp_path / "plain", "npo"), CONSOLE)
    recipe = recipe_of(things, tmp_path / launcher, "npo")
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    command += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{launcher}.yaml")]
    command += [str(ROOT / "recipes" / "unlearn.py"), "--config", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (losses_of(tmp_path / where / "npo") for where in (launcher, "plain"))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    adapters = [
        load_file(tmp_path / where / "npo" / "adapter" / "adapter_model.safetensors") for where in (launcher, "plain")
    ]
    for name, value in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], value, rtol=1e-3, atol=1e-4, msg=name)
