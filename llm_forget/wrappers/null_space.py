"""Null-space training: the adapter never sees the directions in which the inputs of rows to keep lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llm_forget.adapters.sanitise import leading_directions
from llm_forget.data.encode import Encoded
from llm_forget.errors import RecipeError
from llm_forget.model.moments import input_moments
from llm_forget.wrappers import Setting, Wrapper

_MOST = 256  # rows of a set whose inputs are measured


@dataclass
class NullSpace(Wrapper):
    """``A ← A (I − U Uᵀ)`` after every step. U are the leading directions of the inputs of each adapted layer on rows to keep.

    The rows are the retain rows, and the virtual neighbours if there is such a term. The inputs are measured once, with the
    adapter at its start, where it changes nothing.

    Attributes:
        energy: share of the inputs' energy that the adapter does not see, above 0 and below 1.
    """

    energy: float = 0.8

    paper: ClassVar[str] = "arXiv:2606.10989; arXiv:2606.18309"
    cost: ClassVar[str] = "one product per layer, and one pass over rows to keep"
    splits_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._directions: dict[str, Tensor] = {}
        if not 0 < self.energy < 1:
            raise ValueError(f"null_space: energy is {self.energy}; it must be above 0 and below 1")

    def refuses(self, setting: Setting) -> str | None:
        """It needs an adapter with whole factors."""
        if not setting.adapter:
            return "it restricts the adapter, and there is none: remove `adapter: null`"
        if setting.sharded:
            return "it needs whole factors, and FSDP and DeepSpeed shard them: launch with ddp.yaml"
        return None

    def begin(self, model: nn.Module, kept: Sequence[Sequence[Encoded]], pad_token_id: int) -> None:
        """Measure the inputs before the first phase, and project A, whose rows keep their lengths: B is still zero."""
        if self._directions:
            return
        sets = [rows[:_MOST] for rows in kept if rows]
        if not sets:
            raise RecipeError(
                "wrapper null_space has no rows to keep; add data.retain or the retain term virtual_neighbours, or remove it"
            )
        inner: Any = model
        base = inner.get_base_model()
        for group, moments in input_moments(base, [name for name, _ in _factors(base)], sets, pad_token_id):
            directions = leading_directions(torch.stack(moments).mean(0), self.energy)
            self._directions |= dict.fromkeys(group, directions)
        lengths = {name: a.detach().norm(dim=1, keepdim=True) for name, a in _factors(base)}
        self.after_step(model)
        with torch.no_grad():
            for name, a in _factors(base):
                a.mul_(lengths[name] / a.norm(dim=1, keepdim=True).clamp(min=1e-12))

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Project A."""
        inner: Any = model
        for name, a in _factors(inner.get_base_model()):
            u = self._directions[name].to(a)
            a.sub_((a @ u) @ u.T)


def _factors(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The name of each adapted linear layer, and its A."""
    for name, module in base.named_modules():
        factors: Any = getattr(module, "lora_A", None)
        if isinstance(factors, nn.ModuleDict) and "default" in factors:
            yield name, factors["default"].weight  # type: ignore[misc]
