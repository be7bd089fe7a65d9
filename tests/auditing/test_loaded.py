"""`audit()` on loaded models: the grade, the default target of an adapter, and models that are left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from audited import ENCODING, tiny_pair
from peft import LoraConfig, get_peft_model

import llm_forget
from llm_forget import audit
from llm_forget.data.encode import encode_all
from llm_forget.errors import UserError
from llm_forget.testing import memorise

SETTINGS: dict[str, Any] = {"attacks": ["greedy", "membership"], "encoding": {"system_prompt": ""}}


def rows_of(examples: Any) -> list[dict[str, str]]:
    return [{"question": row.prompt[-1].content, "answer": row.answer} for row in examples]


def test_a_model_that_knows_everything_is_not_forgotten() -> None:
    assert "audit" in llm_forget.__all__
    rows, target, oracle = tiny_pair(16)
    model = target.model.requires_grad_(True).train()
    try:
        found = audit(
            model, target.tokenizer, forget=rows_of(rows.forget), holdout=rows_of(rows.holdout), oracle=oracle.model,
            target=target.model, **SETTINGS,
        )  # fmt: skip
        assert model.training
        assert all(value.requires_grad for value in model.parameters())
    finally:
        model.requires_grad_(False).eval()
    assert found.grade.level is None
    assert "not forgotten" in repr(found)
    frame = found.frame().set_index("attack")
    assert frame.loc["greedy", "left"] == pytest.approx(1.0)
    assert frame.loc["greedy", "target"] == frame.loc["greedy", "value"]


def test_an_adapter_is_compared_with_its_base() -> None:
    """The adapter learned the rows, so the base under it knows nothing: target and oracle are the same, no attack can tell."""
    rows, _, oracle = tiny_pair(16)
    torch.manual_seed(0)
    model = get_peft_model(oracle.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    encoded = encode_all(oracle.tokenizer, list(rows.forget[:4]), ENCODING)[0]
    memorise(model, encoded, steps=2)  # type: ignore[arg-type]
    try:
        found = audit(model, oracle.tokenizer, forget=rows_of(rows.forget), oracle=model, **SETTINGS)
    finally:
        model.unload()
    assert [(one.attack, one.answer) for one in found.cells] == [
        ("greedy", "this metric cannot tell"),
        ("membership", "not run"),
    ]
    assert found.cells[1].why == "there are no holdout rows"


def test_rows_that_are_none_are_refused() -> None:
    _, target, _ = tiny_pair(16)
    with pytest.raises(UserError, match="1 forget rows"):
        audit(target.model, target.tokenizer, forget=[{"question": "a", "answer": "b"}])
    with pytest.raises(UserError, match="give rows"):
        audit(target.model, target.tokenizer, forget={"question": ["a"]})  # type: ignore[arg-type]
