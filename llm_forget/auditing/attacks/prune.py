"""Pruning: set the smallest weights of every linear layer to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group, Leaks, Rows
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.tools.probing import probabilities
from llm_forget.auditing.tools.side_adapter import linear_layers
from llm_forget.auditing.tools.tuning import tuned

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats

SHARES = {"plain": 0.0, "20 %": 0.2, "10 %": 0.1, "30 %": 0.3}
_SAMPLE = 1 << 14  # weights of a layer from which the quantile is taken


@dataclass(frozen=True)
class Prune(Attack):
    """Probability of the answer after pruning by magnitude."""

    group: ClassVar[Group] = "weights"
    needs: ClassVar[Access] = Access.WEIGHTS
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Han et al. 2015, arXiv:1506.02626, pruning by magnitude"

    def refuses(self, form: Form) -> str:
        """Packed weights cannot be edited, and what unlearning changed is in the merged weights."""
        if form.packed:
            return "its weights are held in 8 bits and cannot be edited"
        return "pruning is tried on the merged weights" if form.adapter and form.name in FORMS else ""

    def attack(self, subject: Subject, rows: Rows, budget: Budget) -> Leaks:
        """Score every forget row."""

        def score(share: float, asked: Sequence[int]) -> Floats:
            examples = [rows.forget[row] for row in asked]
            if share == 0:
                return probabilities(subject, examples)
            with subject.changed(weights=False) as model, pruned(model, share):
                return probabilities(subject, examples)

        return tuned(rows, budget, SHARES, score)


@contextmanager
def pruned(model: nn.Module, share: float) -> Iterator[None]:
    """In this context, the smallest weights of each linear layer are zero; afterwards each layer has its own tensor again.

    Args:
        model: weights in floating point.
        share: share of the weights, in (0, 1).
    """
    layers: list[Any] = [getattr(layer, "base_layer", layer) for layer in linear_layers(model)]
    weights: list[Tensor] = [layer.weight for layer in layers]
    before = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data * (weight.data.abs() > _quantile(weight.data, share))
        yield
    finally:
        for weight, own in zip(weights, before, strict=True):
            weight.data = own


def _quantile(weight: Tensor, share: float) -> Tensor:
    """The quantile of the absolute weights, from an even sample of them."""
    sizes = weight.flatten()[:: max(1, weight.numel() // _SAMPLE)].abs().float()
    return sizes.kthvalue(max(1, int(share * len(sizes)))).values
