"""Compute frozen lower blocks once for each row: the input of the first trained block is a constant of the row.

With adapters on the upper blocks only, nothing below the first of them changes during training. A row's states there depend on
its own tokens alone, so they are kept in memory at the row's first pass, and every later pass (a step, a check, the reference)
begins at the first trained block. States of forget rows tell as much as the rows themselves, so they are never written to disk,
and are dropped at the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from llm_forget.model.head import below_wrapper
from llm_forget.model.structure import text_decoder
from llm_forget.model.weights import in_shards

# The states that are kept take at most this share of the bytes of the weights. Rows beyond it are computed in every pass.
MOST_SHARE = 0.25
_HELD = "_lower_states"  # attribute of the model below its wrapper
_BLOCK_LISTS = ("layers", "h", "blocks")


class _Reached(Exception):
    """The pass has reached the first trained block."""


class LowerStates:
    """The states of rows at the input of the first trained block.

    Args:
        blocks: the decoder's blocks.
        first: the number of the first trained block; at least 1.
        most: bytes of states to keep, in CPU memory.

    Attributes:
        bytes: of the states that are kept.
        computed: rows whose lower blocks were computed so far.
        in_tuple: whether a block returns its states in a tuple.
    """

    def __init__(self, blocks: Sequence[nn.Module], first: int, most: float) -> None:
        self.blocks, self.first, self.most = blocks, first, most
        self.bytes, self.computed, self.in_tuple = 0, 0, False
        self._known: dict[bytes, Tensor] = {}

    def __deepcopy__(self, memo: Any) -> None:
        """None: a copy of the model, such as a frozen reference, does not hold the states a second time."""

    def of(self, batch: dict[str, Tensor], run: Callable[[dict[str, Tensor]], Tensor]) -> list[Tensor]:
        """The states (length, H) of every row of a right-padded batch, on its device.

        Args:
            batch: ``input_ids``, ``attention_mask`` and further tensors, (B, T).
            run: returns the states (R, T, H) of R of these rows; called for those that are not known yet.
        """
        ids, lengths = batch["input_ids"].cpu(), batch["attention_mask"].sum(-1).tolist()
        keys = [row[:length].numpy().tobytes() for row, length in zip(ids, lengths, strict=True)]
        found = {key: self._known[key] for key in keys if key in self._known}
        missing = {key: place for place, key in enumerate(keys) if key not in found}
        if missing:
            places = list(missing.values())
            width = max(lengths[place] for place in places)
            states = run({name: value[places, :width] for name, value in batch.items()})
            self.computed += len(places)
            for row, (key, place) in zip(states, missing.items(), strict=True):
                found[key] = row[: lengths[place]]
                self._keep(key, found[key])
        return [found[key].to(batch["input_ids"].device) for key in keys]

    def _keep(self, key: bytes, states: Tensor) -> None:
        size = states.numel() * states.element_size()
        if self.bytes + size <= self.most:
            self._known[key] = states.to("cpu", copy=True)  # a view would keep the whole batch
            self.bytes += size

    @torch.no_grad()
    def reached(self, forward: Callable[[], Any]) -> Tensor:
        """The states at the first trained block in a pass of the model, which ends there."""
        caught: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> NoReturn:
            caught.append(args[0] if args else named["hidden_states"])
            raise _Reached

        handle = self.blocks[self.first].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            forward()
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0]

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """In this context a pass of the model begins at the first trained block, with these states (B, T, H)."""

        def put(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((states, *args[1:]), named) if args else (args, {**named, "hidden_states": states})

        def skip(*args: Any, **named: Any) -> Any:
            out = args[0] if args else named["hidden_states"]
            return (out,) if self.in_tuple else out

        below = self.blocks[: self.first]
        own = [vars(block).get("forward") for block in below]
        handle = self.blocks[self.first].register_forward_pre_hook(put, with_kwargs=True)
        try:
            for block in below:
                block.forward = skip
            yield
        finally:
            handle.remove()
            for block, forward in zip(below, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


def lower_states(model: nn.Module) -> LowerStates | None:
    """The states that the model holds below its first trained block; None if it computes all blocks in every pass."""
    held: LowerStates | None = getattr(below_wrapper(model), _HELD, None)
    return held


def hold(model: nn.Module, states: LowerStates | None) -> None:
    """Give the model states to begin its passes with; None to take them away."""
    setattr(below_wrapper(model), _HELD, states)


def states_below(model: nn.Module) -> LowerStates | None:
    """Empty states for a model of which only upper blocks are trained; None if its lowest blocks are trained or not known.

    Weights that are trained outside the blocks, compiled blocks, and weights that are spread over processes or devices do not
    allow it.
    """
    inner = below_wrapper(model)
    decoder = text_decoder(inner)
    blocks = next(
        (one for name in _BLOCK_LISTS if isinstance(one := getattr(decoder, name, None), nn.ModuleList)), None
    )
    if blocks is None or in_shards(inner):
        return None
    trained = [{id(value) for value in block.parameters() if value.requires_grad} for block in blocks]
    everywhere = {id(value) for value in inner.parameters() if value.requires_grad}
    first = next((number for number, inside in enumerate(trained) if inside), 0)
    if first == 0 or everywhere != set().union(*trained):
        return None
    if any(block._compiled_call_impl is not None or hasattr(block, "_hf_hook") for block in blocks):
        return None
    size = sum(value.numel() * value.element_size() for value in inner.parameters())
    return LowerStates(list(blocks), first, MOST_SHARE * size)
