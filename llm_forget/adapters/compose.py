"""Add several adapters into one, and measure from their weights how much they overlap."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from llm_forget.adapters.arithmetic import combine
from llm_forget.adapters.base_layers import check_recorded_base
from llm_forget.adapters.lora import Adapter, Factors
from llm_forget.errors import AdapterError


@dataclass(frozen=True)
class Overlap:
    """How much two adapters overlap, over all modules and for each module that both change.

    Attributes:
        cosine: ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖), Frobenius, from −1 (opposite) over 0 (orthogonal) to 1 (parallel).
        shared_inputs: the same ratio for ΔWᵀΔW, from 0 (they respond to orthogonal input directions) to 1 (they respond to
            the same directions in the same proportion).
        cosines: ``cosine`` per module.
        inputs: ``shared_inputs`` per module.
    """

    cosine: float
    shared_inputs: float
    cosines: Mapping[str, float]
    inputs: Mapping[str, float]


def compose(adapters: Sequence[Adapter], *, assume_same_base: bool = False) -> Adapter:
    """The sum of several adapters as one adapter. The result is bit-identical for every order.

    Args:
        adapters: two or more, all different.
        assume_same_base: as for ``combine``.

    Raises:
        AdapterError: fewer than two adapters, one given twice, adapters for different bases, or one that does not fit its base.
    """
    if len(adapters) < 2:
        raise AdapterError(f"{len(adapters)} adapter given; composing takes two or more.")
    for adapter in adapters:
        check_recorded_base(adapter)
    digests = [adapter_digest(adapter) for adapter in adapters]
    twice = next((digest for digest in digests if digests.count(digest) > 1), None)
    if twice is not None:
        raise AdapterError(
            f"the same adapter is given twice (digest {twice[:12]}…), which would double its strength. Give it once, or scale it "
            "first if you want double strength."
        )
    ordered = [adapter for _, adapter in sorted(zip(digests, adapters, strict=True), key=lambda pair: pair[0])]
    return combine(ordered, [1.0] * len(ordered), assume_same_base=assume_same_base)


def adapter_digest(adapter: Adapter) -> str:
    """SHA-256 of an adapter's factors, scalings, config and base record. 64 hex digits."""
    state = hashlib.sha256(json.dumps([adapter.config, asdict(adapter.base)], sort_keys=True, default=sorted).encode())
    for module, factors in sorted(adapter.modules.items()):
        state.update(f"{module} {factors.scaling!r} {factors.A.dtype} {factors.shape} {factors.rank}".encode())
        for tensor in (factors.A, factors.B):
            state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def overlap(first: Adapter, second: Adapter) -> Overlap:
    """The overlap of two adapters, computed from r × r products without forming ΔW.

    A zero change has overlap 0. The totals count every module that either adapter changes.
    """
    both = sorted(first.modules.keys() & second.modules.keys())
    products = {module: _products(first.modules[module], second.modules[module]) for module in both}
    own = {m: _products(factors, factors) for m, factors in first.modules.items()}
    other = {m: _products(factors, factors) for m, factors in second.modules.items()}

    def whole(which: int) -> float:
        parts = (sum(pair[which] for pair in found.values()) for found in (products, own, other))
        return _cosine(*parts)

    cosines, inputs = ({m: _cosine(products[m][i], own[m][i], other[m][i]) for m in both} for i in (0, 1))
    return Overlap(whole(0), whole(1), cosines, inputs)


def overlaps(adapters: Mapping[str, Adapter]) -> dict[tuple[str, str], Overlap]:
    """The overlap of every pair of adapters, by their names."""
    return {(one, other): overlap(adapters[one], adapters[other]) for one, other in itertools.combinations(adapters, 2)}


def _products(one: Factors, other: Factors) -> tuple[float, float]:
    """⟨ΔW₁, ΔW₂⟩ and ⟨ΔW₁ᵀΔW₁, ΔW₂ᵀΔW₂⟩ of one module, in fp64.

    The first is Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ). The second is ‖ΔW₁ΔW₂ᵀ‖², which with B = QR equals ‖R₁ (A₁A₂ᵀ) R₂ᵀ‖².
    """
    b1, b2 = one.B.double() * one.scaling, other.B.double() * other.scaling
    a12 = one.A.double() @ other.A.double().T
    r1, r2 = torch.linalg.qr(b1, mode="r").R, torch.linalg.qr(b2, mode="r").R
    return float(((b1.T @ b2) * a12).sum()), float((r1 @ a12 @ r2.T).square().sum())


def _cosine(product: float, first: float, second: float) -> float:
    """The cosine of two vectors from ⟨x, y⟩, ⟨x, x⟩ and ⟨y, y⟩; 0 if either is zero."""
    return product / math.sqrt(first * second) if first > 0 and second > 0 else 0.0
