"""Arithmetic on LoRA adapters: negate, scale and combine exactly, truncate to a lower rank by SVD, and norms of ΔW.

A weighted sum of adapters is again an adapter, because Σ wᵢ·scalingᵢ·Bᵢ·Aᵢ is the single product
[w₁·scaling₁·B₁ | w₂·scaling₂·B₂ | …] · [A₁; A₂; …]. Its rank is the sum of the ranks. Ranks, scalings and target modules may
differ. Combining A and B separately, as PEFT's linear merge does, gives something else: (B₁ − B₂)(A₁ − A₂) has cross terms as
large as the result.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llm_forget.adapters.lora import Adapter, BaseRecord, Factors
from llm_forget.adapters.lora_config import explicit_targets, plain_config
from llm_forget.errors import AdapterError

_FP32_EPSILON = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Truncated:
    """An adapter at a lower rank, with the error that this causes.

    Attributes:
        adapter: the truncated adapter, plain LoRA in fp32.
        residual: ‖ΔW − ΔW'‖ / ‖ΔW‖, Frobenius norm over all modules; 0 is exact, 1 means nothing is left.
        per_module: the same ratio for each module.
    """

    adapter: Adapter
    residual: float
    per_module: Mapping[str, float]


def negate(adapter: Adapter) -> Adapter:
    """The adapter for −ΔW: every B is negated. Negating twice gives the same bits."""
    negated = {module: replace(factors, B=-factors.B) for module, factors in adapter.modules.items()}
    return replace(adapter, modules=negated)


def scale(adapter: Adapter, strength: float) -> Adapter:
    """The adapter for ``strength``·ΔW, as plain LoRA: strength and scaling are folded into B in fp32. Same rank."""
    return combine([adapter], [strength])


def combine(adapters: Sequence[Adapter], weights: Sequence[float], *, assume_same_base: bool = False) -> Adapter:
    """The adapter for Σ weight·ΔW, as plain LoRA (scaling 1); exact up to fp32 rounding.

    The rank of a module is the sum of its ranks in the adapters.

    Args:
        adapters: one or more; ranks, scalings and target modules may differ.
        weights: one finite number per adapter, of any sign.
        assume_same_base: do not require records that show the same base.

    Raises:
        AdapterError: not one weight per adapter, a weight is not finite, or the adapters are for different bases.
    """
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"{len(adapters)} adapters and {len(weights)} weights given; give at least one adapter, and one weight for each."
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise AdapterError(f"weights {list(weights)} given; each must be a finite number.")
    base = _common_base(adapters, assume_same_base)
    _check_shapes(adapters)
    modules = {
        module: _stack([(a.modules[module], w) for a, w in zip(adapters, weights, strict=True) if module in a.modules])
        for module in sorted({module for adapter in adapters for module in adapter.modules})
    }
    targets = {name for adapter in adapters for name in explicit_targets(adapter.config, adapter.modules)}
    return _plain(modules, targets, adapters[0], base)


def _stack(parts: Sequence[tuple[Factors, float]]) -> Factors:
    a = torch.cat([factors.A.float() for factors, _ in parts], dim=0)
    b = torch.cat([factors.B.float() * (weight * factors.scaling) for factors, weight in parts], dim=1)
    return Factors(a, b, 1.0)


def _plain(modules: Mapping[str, Factors], targets: set[str], like: Adapter, base: BaseRecord) -> Adapter:
    """An adapter with these modules and a config whose scaling is 1."""
    config = plain_config({module: factors.rank for module, factors in modules.items()}, targets, like.config)
    return Adapter(config, modules, base)


def _common_base(adapters: Sequence[Adapter], assume_same: bool) -> BaseRecord:
    """The base that all adapters share. Raises unless their records show that it is the same."""
    records = [adapter.base for adapter in adapters]
    labels = ", ".join(_label(record) for record in records)
    digests = sorted({record.digest for record in records if record.digest})
    if len(digests) > 1:
        raise AdapterError(
            f"these adapters are for different bases: the weights of {labels} have the digests "
            f"{', '.join(digest[:12] for digest in digests)}. Train all of them on one base."
        )
    names = {(record.name, record.revision) for record in records}
    if len(names) > 1 and not assume_same and not all(record.digest for record in records):
        raise AdapterError(
            f"these adapters name different bases ({labels}), and not all of them record a digest of the weights. If the "
            "weights are the same, pass assume_same_base=True (--assume-same-base). If not, train all of them on one base."
        )
    return replace(records[0], digest=digests[0] if digests else None)


def _label(base: BaseRecord) -> str:
    name = base.name or "no name"
    return f"{name} at {base.revision}" if base.revision else name


def _check_shapes(adapters: Sequence[Adapter]) -> None:
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for module, factors in adapter.modules.items():
            if shapes.setdefault(module, factors.shape) != factors.shape:
                raise AdapterError(
                    f"these adapters are for different bases: {module} is {shapes[module]} in one and {factors.shape} "
                    "in another. Train all of them on one base."
                )


def delta(adapter: Adapter, module: str) -> Tensor:
    """The dense change ΔW = scaling·B·A of one module: (out, in), fp32. For merging and tests.

    Raises:
        AdapterError: the adapter has no such module.
    """
    if module not in adapter.modules:
        near = difflib.get_close_matches(module, adapter.modules, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(adapter.modules)[:3])}, …"
        raise AdapterError(f"the adapter has no module {module!r}; {hint}")
    factors = adapter.modules[module]
    return (factors.B.float() @ factors.A.float()) * factors.scaling


def norm(adapter: Adapter) -> float:
    """The Frobenius norm of ΔW over all modules, computed without forming ΔW."""
    return math.hypot(*(float(torch.linalg.matrix_norm(_core(factors)[1])) for factors in adapter.modules.values()))


def relative_distance(first: Adapter, second: Adapter) -> float:
    """‖ΔW₁ − ΔW₂‖ / ‖ΔW₂‖, Frobenius norm over all modules; infinite if only the second is zero, 0 if both are."""
    difference = norm(combine([first, second], [1.0, -1.0], assume_same_base=True))
    reference = norm(second)
    if reference == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / reference


def truncate(adapter: Adapter, rank: int) -> Truncated:
    """The best approximation of an adapter at a given rank, in the Frobenius norm (Eckart–Young), as plain LoRA.

    A module whose rank is low enough already stays exact. For the others, the SVD runs in fp64 on an r × r core between two
    QR factors, without forming ΔW.

    Args:
        adapter: the adapter.
        rank: the largest rank of a module, 1 or more.

    Raises:
        AdapterError: the rank is below 1.
    """
    if rank < 1:
        raise AdapterError(f"rank {rank} given; at least 1 is needed.")
    modules: dict[str, Factors] = {}
    tails: dict[str, tuple[float, float]] = {}
    for module, factors in adapter.modules.items():
        if factors.rank <= rank:
            modules[module] = _stack([(factors, 1.0)])
            tails[module] = (0.0, _size(factors, float(torch.linalg.matrix_norm(_core(factors)[1]))))
        else:
            modules[module], values = _best(factors, rank)
            whole = float(torch.linalg.vector_norm(values))
            tails[module] = (float(torch.linalg.vector_norm(values[rank:])), _size(factors, whole))
    targets = set(explicit_targets(adapter.config, adapter.modules))
    return Truncated(
        _plain(modules, targets, adapter, adapter.base),
        _ratio(math.hypot(*(tail for tail, _ in tails.values())), math.hypot(*(size for _, size in tails.values()))),
        {module: _ratio(*pair) for module, pair in tails.items()},
    )


def needed_rank(adapter: Adapter, tolerance: float) -> int:
    """The smallest rank at which ``truncate`` leaves a residual of at most ``tolerance``."""
    spectra = {module: torch.linalg.svdvals(_core(factors)[1]) for module, factors in adapter.modules.items()}
    size = math.hypot(
        *(_size(adapter.modules[m], float(torch.linalg.vector_norm(values))) for m, values in spectra.items())
    )

    def fits(rank: int) -> bool:
        tail = math.hypot(
            *(
                float(torch.linalg.vector_norm(values[rank:])) if adapter.modules[m].rank > rank else 0.0
                for m, values in spectra.items()
            )
        )
        return _ratio(tail, size) <= tolerance

    return _first(fits, adapter.rank)


def _first(fits: Callable[[int], bool], last: int) -> int:
    """The smallest rank from 1 to ``last`` that fits; ``last`` itself always does."""
    return next((rank for rank in range(1, last) if fits(rank)), last)


def _core(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_B, core, Q_A) in fp64 with ΔW = Q_B · core · Q_Aᵀ; Q_B (out, p), core (p, q), Q_A (in, q); p, q ≤ r."""
    q_b, r_b = torch.linalg.qr(factors.B.double() * factors.scaling)
    q_a, r_a = torch.linalg.qr(factors.A.double().T)
    return q_b, r_b @ r_a.T, q_a


def _best(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    """The best approximation of rank ``rank``, and the singular values of ΔW (as many as the core has)."""
    q_b, core, q_a = _core(factors)
    u, values, v = torch.linalg.svd(core, full_matrices=False)
    # Sign and size go into B. A then has rows of length 1, which a later cast to 16 bits keeps well.
    b = (q_b @ u[:, :rank]) * values[:rank]
    a = (q_a @ v[:rank].T).T
    return Factors(a.float().contiguous(), b.float().contiguous(), 1.0), values


def _size(factors: Factors, whole: float) -> float:
    """‖ΔW‖, but at least the size of the fp32 rounding error of the factors.

    Two adapters that cancel leave only rounding noise. Without this bound, dropping half of it would be an error of 70 %.
    """
    product = float(torch.linalg.matrix_norm(factors.A.double()) * torch.linalg.matrix_norm(factors.B.double()))
    return max(whole, _FP32_EPSILON * abs(factors.scaling) * product)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
