"""Measure steps of 1B and 8B models with random weights on a GPU: time, memory and its plan, tokens per second, share of peak.

    python scripts/benchmark_gpu.py --gpu H100 --out gpu.json      # within ten minutes on one GPU with 80 GB
    python scripts/benchmark_gpu.py --quick                        # a tiny model, on whatever there is

Sides are those of benchmark.py (``plain`` is the implementation of published code, in fp32 with a second copy), and ``qlora``,
lean on a base in nf4. Each measurement runs in its own process. A side whose plan does not fit is left out and named, and so is
what would begin after --limit seconds. The share of the peak is the number of operations that the side needs, divided by the
time of a step and by the peak of the data sheet.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import benchmark
import benchmark_sides

from llm_forget.cli.entry import run_entry
from llm_forget.errors import RecipeError
from llm_forget.memory.gpus import Gpu, gpu_of
from llm_forget.memory.plan import GB, plan
from llm_forget.utils.files import write_json

# hidden size, inner size, blocks, heads, heads of keys and values, whether embedding and head are one
SHAPES = {"1b": (2048, 8192, 16, 32, 8, True), "8b": (4096, 14336, 32, 32, 8, False), "tiny": (64, 128, 3, 4, 2, True)}
SIDES = ("plain", "lean", "top", "qlora")
VOCABULARY = 128_256
BATCH, STEPS = 8, 6


def write_model(shape: str, folder: Path, vocabulary: int = VOCABULARY) -> Path:
    """Write a Llama with random bf16 weights and a tokenizer for it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from llm_forget.testing import tiny_tokenizer

    hidden, inner, depth, heads, few, tied = SHAPES[shape]
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=few,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / shape)
    tokenizer.save_pretrained(folder / shape)
    return folder / shape


def write_rows(folder: Path, tokens: int) -> dict[str, str]:
    """Write rows of this many tokens; the tokenizer has one for each letter."""
    found = {}
    for name in ("forget", "retain"):
        answer = (f"{name} of a thing " * tokens)[: max(2, tokens - 16)]
        lines = [{"question": f"{name[0]}{row:02}?", "answer": answer} for row in range(BATCH * STEPS)]
        found[name] = str(folder / f"{name}.jsonl")
        Path(found[name]).write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return found


def planned(spec: dict[str, Any], side: str, tokens: int) -> tuple[float, float]:
    """Bytes that a side needs on a GPU, and the operations of its step.

    ``plain`` holds weights, gradients, two moments and the reference in fp32. It computes forget rows four times (reference,
    forward, and a backward pass that is twice as long), and retain rows three times.
    """
    recipe = benchmark_sides.recipe_of(spec, "lean" if side in ("plain", "qlora") else side)
    found = plan(recipe, on_card=True, tokens=tokens)
    if side != "plain":
        return found.needed, found.operations
    weights = found.weights / 2
    logits = 3 * 4.0 * 2 * BATCH * tokens * VOCABULARY
    return 20 * weights + logits, 2 * weights * BATCH * tokens * (4 + 3)


def measure(shape: str, side: str, gpu: Gpu, spec: dict[str, Any], tokens: int) -> dict[str, Any]:
    """One line of the table; ``left_out`` says why there is none."""
    if side == "qlora":
        spec = {**spec, "recipe": {"model": {"quantization": "nf4"}}}
    needed, operations = planned(spec, side, tokens)
    line: dict[str, Any] = {"shape": shape, "side": side, "planned": needed}
    if needed > gpu.memory:
        return {**line, "left_out": f"needs {needed / GB:.0f} GB"}
    run = "lean" if side == "qlora" else side
    found = benchmark.in_a_process("measure", {**spec, "side": run})
    seconds = found["seconds_per_step"]
    share = operations / seconds / gpu.peak
    return {
        **line,
        **{name: found[name] for name in ("seconds_per_step", "tokens_per_second", "peak_bytes")},
        "share": share,
    }


def show(line: dict[str, Any]) -> None:
    """Print a line."""
    start = f"{line['shape']:<6}{line['side']:<8}"
    if "left_out" in line:
        print(f"{start}left out: {line['left_out']}", flush=True)
        return
    print(
        f"{start}{line['seconds_per_step']:>9.3f}{line['tokens_per_second']:>11.0f}{line['peak_bytes'] / GB:>9.1f}"
        f"{line['planned'] / GB:>9.1f}{line['share']:>9.1%}",
        flush=True,
    )


def main(argv: list[str]) -> None:
    """Measure what fits into the memory and the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", help="name of the GPU, for its memory and peak, as in llm-forget plan")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b", "8b"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each row")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which nothing new begins")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, and the peak of an H100 where there is no GPU"
    )
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    given = parser.parse_args(argv)
    if given.gpu is None and not given.quick:
        raise RecipeError("give --gpu, for example H100, or --quick")
    gpu, began = gpu_of(given.gpu or "H100"), time.monotonic()
    lines: list[dict[str, Any]] = []
    print(f"{'':<14}{'s/step':>9}{'tokens/s':>11}{'peak GB':>9}{'planned':>9}{'of peak':>9}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_rows(folder, given.tokens)
        for shape in ["tiny"] if given.quick else given.shapes:
            model = write_model(shape, folder, 300 if given.quick else VOCABULARY)
            spec = {
                **rows,
                "model": str(model),
                "method": "npo",
                "batch": BATCH,
                "epochs": 1,
                "steps": STEPS,
                "system_prompt": None,
                "output": str(folder / "output"),
            }
            for side in given.sides:
                late = time.monotonic() - began > given.limit
                why = {"shape": shape, "side": side, "left_out": f"{given.limit:.0f} seconds are over"}
                lines.append(why if late else measure(shape, side, gpu, spec, given.tokens))
                show(lines[-1])
    if given.out is not None:
        write_json(given.out, {"gpu": gpu.name, "tokens": given.tokens, "lines": lines})


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
