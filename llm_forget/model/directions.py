"""Adapter inputs that respond to some rows and not to others: fix A, train B only.

An adapter changes a layer by B·A. If the rows of A respond to the inputs of the forget rows and hardly to those of the rows to
keep, whatever B learns stays with the forget rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm_forget.data.encode import Encoded
from llm_forget.model.batching import evaluating, padded_batches
from llm_forget.model.head import head_use
from llm_forget.model.logprobs import score_answers
from llm_forget.model.moments import InputMoments
from llm_forget.model.weights import autocast_like, put

WIDEST = 4096  # inputs of a layer; wider layers are not adapted, because the moments of 16,384 inputs fill a gigabyte
RIDGE = 1e-3  # of the mean energy of the kept inputs
_ROUNDS = 6  # of subspace iteration over twice the rank: all but 0.2 % of the energy of 12


def forget_directions(
    forget: Tensor, keep: Tensor, rank: int, *, ridge: float = RIDGE, unit: Literal["forget", "keep"] = "forget"
) -> Tensor:
    """The directions with the largest energy of forget inputs for a given energy of kept inputs.

    The rows a of the result maximise ``aᵀFa / aᵀ(K + εI)a``, one after the other, orthogonal in K + εI: Fisher's discriminant.

    Args:
        forget: (d, d) F, the mean of x xᵀ over the inputs of the forget rows.
        keep: (d, d) K, the same of the rows to keep.
        rank: number of directions, at most d.
        ridge: ε as a share of the mean diagonal of K, above 0.
        unit: scale the directions so that forget inputs have a mean square of 1, or so that a(K + εI)aᵀ is 1.

    Returns:
        (rank, d), the best direction first. F = diag(1, 1) and K = diag(1, 0) give ±(0, 1) first.

    Source: Fisher 1936, Annals of Eugenics 7(2); restricting updates to inputs that other rows lack: arXiv:2606.18309.
    """
    size = len(forget)
    f, k = forget.double().cpu(), keep.double().cpu()
    level = ridge * float(k.diagonal().mean()) or ridge
    root = torch.linalg.cholesky(k + level * torch.eye(size, dtype=k.dtype))

    def whitened(basis: Tensor) -> Tensor:
        """L⁻¹ F L⁻ᵀ of a few columns; the whole matrix would cost ten times as much."""
        inner = f @ torch.linalg.solve_triangular(root.T, basis, upper=True)
        solved: Tensor = torch.linalg.solve_triangular(root, inner, upper=False)
        return solved

    start = torch.randn(size, min(2 * rank, size), dtype=k.dtype, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(whitened(start))[0]
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(whitened(basis))[0]
    values, vectors = torch.linalg.eigh(basis.T @ whitened(basis))
    best = (basis @ vectors).flip(-1)[:, :rank]
    found = torch.linalg.solve_triangular(root.T, best, upper=True)
    if unit == "forget":
        found = found / values.flip(-1)[:rank].clamp(min=1e-12).sqrt()
    directions: Tensor = found.T.float()
    return directions


def aim_adapter(
    model: Any,
    forget: Mapping[str, Tensor],
    keep: Mapping[str, Tensor],
    *,
    ridge: float = RIDGE,
    unit: Literal["forget", "keep"] = "forget",
) -> int:
    """Set the adapter's A to ``forget_directions`` of its inputs, and freeze it, so that training changes B only.

    Layers without moments, which have more than ``WIDEST`` inputs, get no adapter: their A and B are frozen, and B stays 0.

    Args:
        model: a PEFT model with a new adapter, whose B is 0.
        forget: layer → the moments of the rows to forget (``aiming_moments``).
        keep: the same of rows to keep, and of rows like the forget rows about others.
        ridge: see ``forget_directions``.
        unit: see ``forget_directions``.

    Returns:
        The number of layers whose A was set.
    """
    done: dict[int, Tensor] = {}
    aimed = 0
    for name, module in adapted_layers(model).items():
        a = module.lora_A["default"].weight
        a.requires_grad_(False)
        moments = forget.get(name), keep.get(name)
        if moments[0] is None or moments[1] is None:
            module.lora_B["default"].weight.requires_grad_(False)
            continue
        key = id(moments[0])  # layers that read the same inputs share their moments
        if key not in done:
            rank = min(a.shape)
            done[key] = forget_directions(moments[0], moments[1], rank, ridge=ridge, unit=unit)
        chosen = torch.zeros_like(a)  # a rank above the number of inputs has rows without use
        chosen[: len(done[key])] = done[key].to(a)
        put(a, chosen)
        aimed += 1
    return aimed


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of a PEFT model with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def narrow_inputs(model: nn.Module) -> InputMoments:
    """Empty moments of the inputs of each adapted layer that is not too wide."""
    layers = {name: module.lora_A["default"] for name, module in adapted_layers(model).items()}
    return InputMoments({name: layer for name, layer in layers.items() if layer.in_features <= WIDEST})


@torch.no_grad()
def aiming_moments(model: Any, rows: Sequence[Encoded], pad_token_id: int) -> dict[str, Tensor]:
    """The moments of the rows, for ``aim_adapter``."""
    found = narrow_inputs(model)
    with evaluating(model), autocast_like(model):
        head_use(model)  # its trial passes would count as rows
        for batch in padded_batches(rows, pad_token_id, next(model.parameters()).device):
            with found.reading(batch["attention_mask"]):
                score_answers(model, batch)
    return found.means
