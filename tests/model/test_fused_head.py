"""Test the fused kernel for answer log-probs: who may use it, what refuses it, and Liger's own kernel in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from places import ROOT
from torch import Tensor, nn

from llm_forget.config import AdapterConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model import fused_head as module
from llm_forget.model.blocks import add_adapter
from llm_forget.model.fused_head import fused_head
from llm_forget.model.logprobs import score_answers
from llm_forget.testing import tiny_model, tiny_tokenizer

ROWS = [Encoded("a", (5, 9, 3, 8, 8, 1), 3), Encoded("b", (5, 9, 2, 1), 2), Encoded("c", (6, 4, 1, 2, 3, 4, 5, 1), 2)]
Kernel = Callable[..., tuple[Any, ...]]


def right(hidden: Tensor, weight: Tensor, wanted: Tensor, **how: Any) -> tuple[Any, ...]:
    """What the kernel computes: the loss of each row, and its gradient for that row."""
    assert how["reduction"] == "none"
    probabilities = (hidden @ weight.T).float().softmax(-1)
    loss = -probabilities.gather(-1, wanted[:, None]).squeeze(-1).log()
    probabilities[torch.arange(len(wanted)), wanted] -= 1
    return loss, None, None, None, (probabilities @ weight.float()).to(hidden.dtype), None, None


def scaled(hidden: Tensor, weight: Tensor, wanted: Tensor, **how: Any) -> tuple[Any, ...]:
    """A kernel with right losses and wrong gradients."""
    loss, *between, slope, _, _ = right(hidden, weight, wanted, **how)
    return loss, *between, 1.1 * slope, None, None


def broken(*_: Any, **__: Any) -> tuple[Any, ...]:
    raise RuntimeError("cannot be compiled")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], list[int]]:
    """Pretend that Liger is installed, with this kernel, and that it runs on a CPU; returns the rows of each call."""

    def put(kernel: Kernel) -> list[int]:
        calls: list[int] = []

        def counted(hidden: Tensor, weight: Tensor, wanted: Tensor, **how: Any) -> tuple[Any, ...]:
            calls.append(len(hidden))
            return kernel(hidden, weight, wanted, **how)

        for name in ("liger_kernel", "liger_kernel.ops", "liger_kernel.ops.fused_linear_cross_entropy"):
            made = ModuleType(name)
            made.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, made)
        made.fused_linear_cross_entropy_forward = counted  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "_DEVICES", ("cpu",))
        return calls

    return put


def scores(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs, and the gradient of an uneven loss of them."""
    found = score_answers(model, collate(ROWS, 0)).token_logps
    (found.exp() * torch.arange(found.numel()).view_as(found)).sum().backward()
    slopes = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    return found.detach(), slopes


def adapted(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = add_adapter(tiny_model(tiny_tokenizer()).to(dtype), AdapterConfig(rank=4))
    torch.manual_seed(0)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    return model


def test_log_probs_and_gradients_are_those_of_the_usual_code(install: Callable[[Kernel], list[int]]) -> None:
    """A loss that weights every token differently: a kernel that scales all rows alike would be wrong here."""
    calls, model = install(right), adapted()
    logps, slopes = scores(model)
    assert not calls
    with fused_head(model) as used:
        assert used
        calls.clear()
        again, others = scores(model)
    assert calls == [sum(row.answer_length for row in ROWS)], "one call for all answer tokens"
    torch.testing.assert_close(again, logps)
    assert slopes.keys() == others.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(others[name], slope)
    with fused_head(model), torch.no_grad():
        calls.clear()
        torch.testing.assert_close(score_answers(model, collate(ROWS, 0)).token_logps, logps)
    assert not calls, "without a gradient the usual code takes one product less"
    scores(model)
    assert not calls, "after the run the usual code is back"


@pytest.mark.parametrize(("kernel", "reason"), [(scaled, "differs by"), (broken, "RuntimeError")])
def test_a_kernel_with_other_numbers_or_an_error_is_not_used(
    kernel: Kernel, reason: str, install: Callable[[Kernel], list[int]]
) -> None:
    said: list[str] = []
    install(kernel)
    with fused_head(adapted(), say=said.append) as used:
        assert not used
    assert len(said) == 1
    assert reason in said[0]
    assert "the usual code computes the log-probs" in said[0]


def test_a_trained_head_and_a_run_that_does_not_want_it(install: Callable[[Kernel], list[int]]) -> None:
    calls = install(right)
    with fused_head(tiny_model(tiny_tokenizer())) as used:
        assert not used, "its head is trained"
    with fused_head(adapted(), wanted=False) as used:
        assert not used
    assert not calls


def test_without_the_package_or_a_gpu_nothing_changes() -> None:
    said: list[str] = []
    with fused_head(adapted(), say=said.append) as used:
        assert not used
    assert not said


INTERPRETED = """
import sys, torch
from torch import nn
from llm_forget.model.fused_head import differences, liger
for dtype, logp, slope in ((torch.float32, 1e-5, 1e-5), (torch.bfloat16, 1e-3, 1e-2)):
    torch.manual_seed(0)
    head = nn.Linear(48, 211, bias=False).to(dtype).requires_grad_(False)
    found = differences(head, liger(head))
    assert found[0] <= logp and found[1] <= slope, (dtype, found)
print("same")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None,
    reason="needs liger-kernel and triton, which no extra for a CPU installs",
)
def test_ligers_kernel_in_tritons_interpreter() -> None:
    """Within 1e-5 in fp32 and 1e-3 nats in bf16. The interpreter runs the kernel's own code on a CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("same")
