"""Simulate one training step on fake tensors, and count the bytes that are allocated at its peak."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llm_forget.memory.operations import operations
from llm_forget.model.checkpointing import frozen_stays_frozen
from llm_forget.model.curvature import watched
from llm_forget.model.directions import adapted_layers, narrow_inputs
from llm_forget.model.head import HeadUse, chunk_rows, head_gives_logps, head_use, output_head
from llm_forget.model.logprobs import place_rows
from llm_forget.model.steady import steady_base
from llm_forget.model.structure import vocabulary_of
from llm_forget.scores import kl_divergence


@dataclass(frozen=True)
class Batch:
    """The size of a micro-batch.

    Attributes:
        rows: rows that the policy trains on.
        tokens: tokens per row.
        read: rows whose logits are read by a loss.
        reference: rows per forward pass of the reference; 0 if the reference does not run in a step.
        hidden: whether a loss reads hidden states.
    """

    rows: int
    tokens: int
    read: int = 0
    reference: int = 0
    hidden: bool = False


class PlannedStep:
    """One micro-batch, forward and backward, on fake tensors."""

    def __init__(self, model: nn.Module, batch: Batch, *, on_card: bool) -> None:
        self.model, self.batch, self.on_card = model, batch, on_card

    def peak(self, *, autocast: bool, checkpointing: dict[str, Any] | None, accumulate: bool) -> Counter[str]:
        """Bytes allocated at the peak, without model and optimizer: ``all``, and the part for ``logits``.

        ``operations`` are the floating-point operations of the micro-batch.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        model: Any = self.model
        if checkpointing is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
            frozen_stays_frozen(model)
        vocabulary = vocabulary_of(model.config)
        with steady_base(model), FakeTensorMode(allow_non_fake_inputs=True):
            model.train()
            _give_storage(model)
            head_use(model)  # the trial is no part of the step
            ids = torch.zeros(self.batch.rows, self.batch.tokens, dtype=torch.long)
            with _Alive(vocabulary) as alive, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for _ in range(2 if accumulate else 1):
                    torch.autograd.backward(self._loss(ids))
        peak: Counter[str] = alive.peak
        peak["operations"] = round(alive.operations / (2 if accumulate else 1))
        return peak

    def preparing(self, *, autocast: bool) -> Counter[str]:
        """Bytes allocated at the peak while the inputs of the adapter are chosen (``train.aiming``), as ``all``.

        The moments of the rows to forget wait while those of the rows to keep are measured, with the curvature if logits are
        read. Both are divided by the number of tokens at the end, when the sums are still there.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        model: Any = self.model
        with steady_base(model), FakeTensorMode(allow_non_fake_inputs=True):
            model.train()
            _give_storage(model)
            head_use(model)
            trained = [value for value in model.parameters() if value.requires_grad]
            inputs, sums = narrow_inputs(model), dict[str, Tensor]()
            ids = torch.zeros(self.batch.rows, self.batch.tokens, dtype=torch.long)
            with _Alive(vocabulary_of(model.config)) as alive, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                # a mask of another shape than the rows stands for rows without padding
                with inputs.reading(torch.ones(1)), watched(adapted_layers(model) if self.batch.read else {}, sums):
                    with torch.set_grad_enabled(self.batch.read > 0):
                        _, kept = self._scores(ids)
                    if kept is not None:
                        torch.autograd.grad(_drawn_loss(kept), trained, allow_unused=True)
                moments, curvature = _bytes(inputs.sums.values()), _bytes(sums.values())
        after = 3 * moments + 2 * curvature
        return Counter({"all": max(alive.peak["all"] + moments, after)})

    def _loss(self, ids: Tensor) -> Tensor:
        """The loss as in ``score_answers`` and the trainer, for rows in which every token except the first is an answer token."""
        logps, kept = self._scores(ids)
        loss = logps.sum()
        other = None
        if self.batch.reference:
            with torch.no_grad():
                _, other = self._scores(ids[: self.batch.reference])
        if kept is not None:
            loss = loss + (kept.logsumexp(-1) if other is None else kl_divergence(other, kept[: len(other)])).sum()
        return loss

    def _scores(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """The log-probs of all tokens, and (rows, tokens, V) logits of the rows whose logits a loss reads, or None."""
        rows, width = ids.shape[0], ids.shape[1] - 1
        targets = torch.zeros(rows * width, dtype=torch.long)
        read = min(self.batch.read, rows)
        size = None if read else chunk_rows(self.model, len(targets), on_cpu=not self.on_card)
        with nullcontext() if size is None else head_gives_logps(self.model, targets, size):
            logits = self._logits(ids).float()
        if size is not None:
            return logits, None
        logps = logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
        if not read:
            return logps, None
        kept = logits[: read * width]
        return logps, place_rows(kept, torch.arange(len(kept)), (read, width))

    def _logits(self, ids: Tensor) -> Tensor:
        def keep(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0][:, :-1].reshape(-1, args[0].shape[-1]), *args[1:])

        whole = head_use(self.model) is HeadUse.WHOLE
        handle = None if whole else output_head(self.model).register_forward_pre_hook(keep)
        try:
            model: Any = self.model
            more = {"output_hidden_states": True} if self.batch.hidden else {}
            logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more).logits
        finally:
            if handle is not None:
                handle.remove()
        return logits[:, :-1].reshape(-1, logits.shape[-1]) if whole else logits


def _drawn_loss(logits: Tensor) -> Tensor:
    """The loss of answers that the model draws itself, as in ``curvature.kept_metrics``."""
    logps = logits.log_softmax(-1)
    uniform = torch.rand(logps.shape[:2])[..., None]
    drawn = (logps.detach().exp().cumsum(-1) < uniform).sum(-1).clamp(max=logps.shape[-1] - 1)
    return -logps.gather(-1, drawn[..., None]).sum()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _give_storage(model: nn.Module) -> None:
    """Replace meta tensors by fake ones in place; tied tensors stay tied."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and id(value) not in made:
                    empty = torch.empty(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(empty, requires_grad=value.requires_grad) if trained else empty
                if value is not None:
                    held[name] = made[id(value)]  # type: ignore[assignment]


_GROUPED_MM = torch.ops.aten._grouped_mm.default


def _grouped(left: Tensor, right: Tensor, ends: Tensor | None = None, *_: Any) -> Tensor:
    """The result of the grouped product of a mixture of experts: torch simulates it for bf16 alone.

    Args:
        left: (S, K) tokens sorted by expert, or (E, S, K).
        right: (E, K, N) experts; or (K, N) tokens, for the gradient of the experts' weights.
        ends: (E,) the end of each expert's tokens.
    """
    sizes = (left.shape[-2], right.shape[-1])
    if left.dim() == right.dim():
        count = left.shape[0] if left.dim() == 3 or ends is None else ends.shape[0]
        return left.new_empty((count, *sizes))
    return left.new_empty(sizes)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations allocated and that are not freed yet."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.operations = 0.0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.operations += operations(func, args)
        out = _grouped(*args) if func is _GROUPED_MM else func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        kind = "logits" if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary else "other"
        for name in (kind, "all"):
            self.now[name] += size
        if self.now["all"] > self.peak["all"]:
            self.peak = Counter(self.now)
        weakref.finalize(storage, self._let_go, key, kind, size)

    def _let_go(self, key: int, kind: str, size: int) -> None:
        self._seen.discard(key)
        for name in (kind, "all"):
            self.now[name] -= size
