"""How strongly the outputs of adapted layers matter for rows to keep: second moments of their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.data.encode import Encoded
from llm_forget.model.batching import evaluating, padded_batches
from llm_forget.model.directions import adapted_layers, narrow_inputs
from llm_forget.model.head import head_use
from llm_forget.model.logprobs import score_answers
from llm_forget.model.weights import autocast_like, exact

WIDEST = 4096  # outputs of a layer; of wider layers only the mean square of a gradient is kept
RIDGE = 0.1  # of the mean square of a gradient


def kept_metrics(
    model: Any, rows: Sequence[Encoded], pad_token_id: int, *, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two factors of K-FAC at each adapted layer: moments of its inputs, and the Fisher information in its outputs.

    The answers are drawn from the model itself, so that this is the curvature of ``KL(π₀ ‖ π)`` on the rows: a change of an
    output by v costs about ``½ vᵀGv`` nats.

    Args:
        model: a PEFT model with a new adapter, whose B is 0 and trainable.
        rows: rows to keep.
        pad_token_id: the padding token.
        seed: of the drawn answers.

    Returns:
        The moments of the inputs (``directions.aim_adapter``), and for the name of each adapted layer the lower Cholesky
        factor of ``G + εI``, (d, d) with d outputs, where G is the mean over tokens of g gᵀ, and ε a tenth of its mean
        diagonal. For a layer with more than ``WIDEST`` outputs the root of that mean diagonal, as a scalar.

    Source: Martens and Grosse 2015, arXiv:1503.05671, equation 1 and section 3.
    """
    inputs = narrow_inputs(model)
    sums: dict[str, Tensor] = {}
    tokens = 0
    drawn = torch.Generator().manual_seed(seed)
    trained = [value for value in model.parameters() if value.requires_grad]
    with evaluating(model), watched(adapted_layers(model), sums), torch.enable_grad(), autocast_like(model):
        head_use(model)  # its trial passes would count as rows
        for batch in padded_batches(rows, pad_token_id, next(model.parameters()).device):
            tokens += int(batch["attention_mask"].sum())
            with inputs.reading(batch["attention_mask"]):
                scores = score_answers(model, batch, keep_logits=True)
            if scores.logits is None:
                raise RuntimeError("the logits were not kept")
            logps = scores.logits.log_softmax(-1)
            labels = _draw(logps.detach(), drawn)
            loss = -(logps.gather(-1, labels[..., None]).squeeze(-1) * scores.mask).sum()
            torch.autograd.grad(loss, trained, allow_unused=True)
    return inputs.means, {name: _factor(total / max(tokens, 1)) for name, total in sums.items()}


def _draw(logps: Tensor, drawn: torch.Generator) -> Tensor:
    """One token for each position (B, A), drawn on the CPU so that every device gives the same."""
    uniform = torch.rand(logps.shape[:2], generator=drawn).to(logps.device)
    index = (logps.exp().cumsum(-1) < uniform[..., None]).sum(-1)
    return index.clamp(max=logps.shape[-1] - 1)


def _factor(moment: Tensor) -> Tensor:
    if moment.ndim == 0:
        return torch.sqrt(moment * (1 + RIDGE))
    level = RIDGE * moment.diagonal().mean()
    if float(level) <= 0:  # nothing of this layer reaches an answer
        return torch.ones((), device=moment.device)
    factor: Tensor = torch.linalg.cholesky(moment + level * torch.eye(len(moment), device=moment.device))
    return factor


@contextmanager
def watched(layers: dict[str, Any], sums: dict[str, Tensor]) -> Iterator[None]:
    """Add up g gᵀ over the tokens of each layer's output gradients, in fp32."""

    def add(name: str, gradient: Tensor) -> None:
        flat = gradient.reshape(-1, gradient.shape[-1]).float()
        with exact(gradient):
            found = flat.T @ flat if flat.shape[-1] <= WIDEST else flat.square().sum() / flat.shape[-1]
        sums[name] = found if name not in sums else sums[name] + found

    def watcher(name: str) -> Any:
        def after(module: nn.Module, given: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda gradient: add(name, gradient))  # type: ignore[no-untyped-call]

        return after

    handles = [layer.register_forward_hook(watcher(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
