"""Arithmetic on LoRA adapters: exact by stacking ranks, or at a chosen rank by SVD with the error stated.

Σ wᵢ·scalingᵢ·Bᵢ·Aᵢ is one product [w₁·scaling₁·B₁ | w₂·scaling₂·B₂ | …] · [A₁; A₂; …], whatever the ranks, scalings and
targets of the summands: the sum of adapters is an adapter whose rank is the sum of theirs. Combining A and B apart, as
a linear merge does, is another quantity: (B₁ − B₂)(A₁ − A₂) has cross terms as large as the result.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llm_forget.adapters.lora import Adapter, BaseRecord, Factors, load_pair_on_changed_base
from llm_forget.adapters.lora_config import explicit_targets, plain_config
from llm_forget.errors import AdapterError

_FP32_EPSILON = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class Truncated:
    """An adapter at a lower rank, and what that cost.

    Attributes:
        adapter: the adapter, plain LoRA in fp32.
        residual: ‖ΔW − ΔW'‖ / ‖ΔW‖ over all modules together, Frobenius; 0 is exact, 1 is nothing kept.
        per_module: the same for each module by itself.
    """

    adapter: Adapter
    residual: float
    per_module: Mapping[str, float]


def negate(adapter: Adapter) -> Adapter:
    """The adapter with the opposite effect: every B with its sign turned; negating twice gives the same bits."""
    turned = {module: replace(factors, B=-factors.B) for module, factors in adapter.modules.items()}
    return replace(adapter, modules=turned)


def scale(adapter: Adapter, strength: float) -> Adapter:
    """``strength`` times the adapter, as plain LoRA: strength and scaling folded into B in fp32, rank unchanged."""
    return combine([adapter], [strength])


def add(first: Adapter, second: Adapter, *, assume_same_base: bool = False) -> Adapter:
    """The sum of two adapters, exact, at the sum of their ranks. Arguments and errors as ``combine``."""
    return combine([first, second], [1.0, 1.0], assume_same_base=assume_same_base)


def subtract(first: Adapter, second: Adapter, *, assume_same_base: bool = False) -> Adapter:
    """``first`` minus ``second``, exact, at the sum of their ranks. Arguments and errors as ``combine``."""
    return combine([first, second], [1.0, -1.0], assume_same_base=assume_same_base)


def combine(adapters: Sequence[Adapter], weights: Sequence[float], *, assume_same_base: bool = False) -> Adapter:
    """Σ weight·ΔW as plain LoRA (scaling 1), exact up to fp32 rounding. A module's rank is the sum of its ranks.

    Args:
        adapters: at least one; ranks, scalings and target modules may differ.
        weights: one finite number each, of any sign.
        assume_same_base: take adapters for the same base though their records cannot show it.

    Raises:
        AdapterError: not one weight each, a weight that is not finite, or adapters for different bases.
    """
    if not adapters or len(adapters) != len(weights):
        raise AdapterError(
            f"{len(adapters)} adapters and {len(weights)} weights given; at least one, and one weight each."
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
    """An adapter whose config gives scaling 1 to these modules."""
    config = plain_config({module: factors.rank for module, factors in modules.items()}, targets, like.config)
    return Adapter(config, modules, base)


def undo_initialisation(trained: str | Path, untrained: str | Path) -> Adapter:
    """The plain adapter for the original base of one whose initialisation changed it (PiSSA, OLoRA, CorDA, LoRA-GA).

    Such an initialisation takes scaling·B₀·A₀ out of the base, so relative to the original base the trained adapter is
    scaling·(B·A − B₀·A₀): rank 2r.

    Args:
        trained: the adapter's folder after training.
        untrained: the same adapter saved before the first step.

    Raises:
        AdapterError: either cannot be read, or they do not match in modules, ranks or scaling.
    """
    after, before = load_pair_on_changed_base(trained, untrained)
    same = after.modules.keys() == before.modules.keys() and all(
        (factors.A.shape, factors.B.shape, factors.scaling)
        == (before.modules[m].A.shape, before.modules[m].B.shape, before.modules[m].scaling)
        for m, factors in after.modules.items()
    )
    if not same:
        raise AdapterError(
            f"{trained} and {untrained} differ in modules, ranks or scaling; the second must be the first as it was "
            "before training: save it right after it was made."
        )
    return subtract(after, before)


def _common_base(adapters: Sequence[Adapter], assume_same: bool) -> BaseRecord:
    """One record out of all, refusing records that say, or cannot rule out, different bases."""
    records = [adapter.base for adapter in adapters]
    labels = ", ".join(_label(record) for record in records)
    digests = sorted({record.digest for record in records if record.digest})
    if len(digests) > 1:
        raise AdapterError(
            f"these adapters are for different bases: {labels} have weights with the digests "
            f"{', '.join(digest[:12] for digest in digests)}. Train all of them on one base."
        )
    names = {(record.name, record.revision) for record in records}
    if len(names) > 1 and not assume_same and not all(record.digest for record in records):
        raise AdapterError(
            f"these adapters name different bases ({labels}), and not all record a digest of its weights that could "
            "show them equal. If the weights are the same, pass assume_same_base=True (--assume-same-base); if not, train "
            "all on one base."
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
                    "in another. Train both on one base."
                )


def delta(adapter: Adapter, module: str) -> Tensor:
    """The dense change ΔW = scaling·B·A of one module, (out, in), fp32: for tests and measurements, not for arithmetic.

    Raises:
        AdapterError: the adapter does not change that module.
    """
    if module not in adapter.modules:
        near = difflib.get_close_matches(module, adapter.modules, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(adapter.modules)[:3])}, …"
        raise AdapterError(f"the adapter has no module {module!r}; {hint}")
    factors = adapter.modules[module]
    return (factors.B.float() @ factors.A.float()) * factors.scaling


def norm(adapter: Adapter) -> float:
    """The Frobenius norm of ΔW over all modules, without forming any ΔW."""
    return math.hypot(*(float(torch.linalg.matrix_norm(_core(factors)[1])) for factors in adapter.modules.values()))


def relative_distance(first: Adapter, second: Adapter) -> float:
    """‖ΔW₁ − ΔW₂‖ / ‖ΔW₂‖, Frobenius over all modules; infinite when the second is zero and the first is not."""
    difference, reference = norm(subtract(first, second, assume_same_base=True)), norm(second)
    if reference == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / reference


def truncate(adapter: Adapter, rank: int) -> Truncated:
    """The best adapter of at most ``rank`` in every module, in the Frobenius norm (Eckart–Young), as plain LoRA.

    Modules whose rank fits are kept as they are, so that an adapter that fits is exact. The SVD is that of an r × r
    core between two QR factors, in fp64: no ΔW is formed.

    Args:
        adapter: any adapter.
        rank: the largest rank allowed, at least 1.

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
    """The smallest of 1 … last that fits, ``last`` being known to."""
    return next((rank for rank in range(1, last) if fits(rank)), last)


def _core(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """(Q_B, core, Q_A) in fp64 with ΔW = Q_B · core · Q_Aᵀ; Q_B (out, p), core (p, q), Q_A (in, q); p, q ≤ r."""
    q_b, r_b = torch.linalg.qr(factors.B.double() * factors.scaling)
    q_a, r_a = torch.linalg.qr(factors.A.double().T)
    return q_b, r_b @ r_a.T, q_a


def _best(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    """The best approximation of at most ``rank``, and all singular values of ΔW (as many as the core has)."""
    q_b, core, q_a = _core(factors)
    u, values, v = torch.linalg.svd(core, full_matrices=False)
    # Sign and size go into B, so that A has rows of length 1 and survives any later cast to 16 bits alike.
    b = (q_b @ u[:, :rank]) * values[:rank]
    a = (q_a @ v[:rank].T).T
    return Factors(a.float().contiguous(), b.float().contiguous(), 1.0), values


def _size(factors: Factors, whole: float) -> float:
    """‖ΔW‖, but never below what fp32 rounding of the factors alone can make.

    Two adapters that cancel leave noise; measured against itself, cutting half of that noise off would look like
    an error of 70 %.
    """
    product = float(torch.linalg.matrix_norm(factors.A.double()) * torch.linalg.matrix_norm(factors.B.double()))
    return max(whole, _FP32_EPSILON * abs(factors.scaling) * product)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
