"""Several adapters stacked into one, whatever their order, and how much they interfere as far as weights can tell."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from llm_forget.adapters.arithmetic import combine
from llm_forget.adapters.lora import Adapter, Factors
from llm_forget.errors import AdapterError


@dataclass(frozen=True)
class Overlap:
    """How two changes of the same weights meet, over all modules together and in each that both change.

    Attributes:
        cosine: ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖), Frobenius, from −1 (they cancel) over 0 (neither holds any of the other) to 1
            (one repeats the other).
        shared_inputs: the same of ΔWᵀΔW, from 0 (they read directions at right angles, so that what one answers to the
            other does not see) to 1 (they read the same directions in the same proportion).
        cosines: the first, module by module.
        inputs: the second, module by module.
    """

    cosine: float
    shared_inputs: float
    cosines: Mapping[str, float]
    inputs: Mapping[str, float]


def compose(adapters: Sequence[Adapter], *, assume_same_base: bool = False) -> Adapter:
    """The sum of several adapters as one, the same to the bit in whatever order they are given.

    Args:
        adapters: at least two, different from each other.
        assume_same_base: as for ``combine``.

    Raises:
        AdapterError: fewer than two, the same one twice, or adapters for different bases.
    """
    if len(adapters) < 2:
        raise AdapterError(f"{len(adapters)} adapter given; composing takes two or more.")
    digests = [adapter_digest(adapter) for adapter in adapters]
    twice = next((digest for digest in digests if digests.count(digest) > 1), None)
    if twice is not None:
        raise AdapterError(
            f"the same adapter is given twice (digest {twice[:12]}…), which would double its strength. Give it once; "
            "where double strength is meant, scale it first."
        )
    ordered = [adapter for _, adapter in sorted(zip(digests, adapters, strict=True), key=lambda pair: pair[0])]
    return combine(ordered, [1.0] * len(ordered), assume_same_base=assume_same_base)


def adapter_digest(adapter: Adapter) -> str:
    """SHA-256 of all that an adapter is: factors, scalings, config and base. 64 hex digits."""
    state = hashlib.sha256(json.dumps([adapter.config, asdict(adapter.base)], sort_keys=True, default=sorted).encode())
    for module, factors in sorted(adapter.modules.items()):
        state.update(f"{module} {factors.scaling!r} {factors.A.dtype} {factors.shape} {factors.rank}".encode())
        for tensor in (factors.A, factors.B):
            state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def overlap(first: Adapter, second: Adapter) -> Overlap:
    """How two adapters meet in weight space, without forming any ΔW: every product is of rank by rank.

    A zero change meets nothing: 0. The whole counts every module that either changes.
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
    """The overlap of every pair, by their names."""
    return {(one, other): overlap(adapters[one], adapters[other]) for one, other in itertools.combinations(adapters, 2)}


def _products(one: Factors, other: Factors) -> tuple[float, float]:
    """⟨ΔW₁, ΔW₂⟩ and ⟨ΔW₁ᵀΔW₁, ΔW₂ᵀΔW₂⟩ of one module, in fp64.

    The first is Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ); the second is ‖ΔW₁ΔW₂ᵀ‖², and with B = QR that of R₁ (A₁A₂ᵀ) R₂ᵀ.
    """
    b1, b2 = one.B.double() * one.scaling, other.B.double() * other.scaling
    a12 = one.A.double() @ other.A.double().T
    r1, r2 = torch.linalg.qr(b1, mode="r").R, torch.linalg.qr(b2, mode="r").R
    return float(((b1.T @ b2) * a12).sum()), float((r1 @ a12 @ r2.T).square().sum())


def _cosine(product: float, first: float, second: float) -> float:
    """Of two vectors, from ⟨x, y⟩, ⟨x, x⟩ and ⟨y, y⟩; 0 where one is zero."""
    return product / math.sqrt(first * second) if first > 0 and second > 0 else 0.0
