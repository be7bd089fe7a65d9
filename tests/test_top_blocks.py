"""An adapter on the upper blocks alone: which those are, that nothing is kept of the rest, and what a run makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llm_forget.config import AdapterConfig, UnlearnRecipe, build
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.logprobs import score_answers
from llm_forget.models import add_adapter, block_of, top_blocks
from llm_forget.testing import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("share", "depth", "expected"),
    [(1.0, 30, None), (1 / 3, 30, range(20, 30)), (0.5, 3, range(1, 3)), (0.01, 4, range(3, 4)), (0.99, 4, None)],
)
def test_which_blocks(share: float, depth: int, expected: range | None) -> None:
    assert top_blocks(AdapterConfig(top_blocks=share), depth) == expected


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"top_blocks is .*above 0 and at most 1"):
        AdapterConfig(top_blocks=share)


def test_backward_ends_at_the_lowest_of_them() -> None:
    """Bytes kept for backward and blocks whose states have a gradient, on one of four blocks against all."""
    kept, with_gradient = [], []
    for share in (1.0, 0.25):
        model = add_adapter(tiny_model(tiny_tokenizer(), layers=4), AdapterConfig(rank=2, alpha=2, top_blocks=share))
        found: list[bool] = []
        for layer in model.get_base_model().model.layers:
            layer.register_forward_hook(lambda _, args, out, found=found: found.append(out.requires_grad))
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.update({tensor.untyped_storage()._cdata: tensor.nbytes}) or tensor,
            lambda tensor: tensor,
        ):
            scores = score_answers(model, collate([Encoded("a", (5, 9, 3, 8, 8, 1), 2)], 0))
        scores.logps.sum().backward()  # type: ignore[no-untyped-call]
        kept.append(sum(sizes.values()))
        with_gradient.append(found)
    assert with_gradient == [[True] * 4, [False, False, False, True]]
    assert kept[1] < 0.5 * kept[0]


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, layers=3).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for part in ("forget", "retain"):
        rows = [{"question": f"{part} {row}?", "answer": f"the {part} one"} for row in range(4)]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"name": str(folder / "model")},
        "data": {part: {"path": str(folder / f"{part}.jsonl")} for part in ("forget", "retain")},
        "adapter": {"rank": 2, "alpha": 2, "top_blocks": 0.34},
        "train": {"epochs": 2, "batch_size": 2, "learning_rate": 1e-2},
        "stop": {"forget_target": None, "utility_floor": 0.0},
        "output_dir": str(folder / "run"),
        **changes,
    }


@pytest.mark.parametrize("method", ["npo", "adapter_subtraction"])
def test_a_run_leaves_an_adapter_on_them_alone_that_peft_loads(method: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from llm_forget.unlearning import unlearn

    unlearn(build(UnlearnRecipe, values(tmp_path, method={"name": method}), "test"))
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {block_of(name) for name in tensors} == {2}
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")(ids).logits
    assert (after - before).abs().max() > 1e-3


def test_a_method_that_trains_blocks_of_its_own_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    from llm_forget.preflight import make_plan

    recipe = build(UnlearnRecipe, values(tmp_path, method={"name": "rmu"}), "test")
    with pytest.raises(RecipeError, match=r"top_blocks is 0.34, and the method rmu chooses .* leave top_blocks out"):
        make_plan(recipe)
