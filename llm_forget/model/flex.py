"""Attention of a packed batch by torch's flex attention: over the one sequence, without gathered rows or copies of prefixes.

The usual way gathers the keys of every row, its shared prefix included, and pads the rows. Here each token attends to the
sequence itself, in blocks; blocks without a pair of tokens that may see each other are left out. It is compiled once per process,
which takes a while, so it is for batches with a long row only. It is tried on the first of them: what does not give the numbers
of the usual way is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from llm_forget.model.kernel_trial import agrees, failed, relative_difference

_NAMES = ("flex attention", "packed rows are gathered instead")
_DEVICES = ("cuda",)
_LONG = 1024  # tokens of the longest row; attention over shorter rows is a small part of a step
_BLOCK = 128
# Largest difference of an output or a gradient, as a share of the largest one; rounding in bf16 is 4e-3.
_LARGEST = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
# What a model may ask of its attention that is not done here. A window is no limit to packed rows, but it is rarely tested.
_MORE = ("softcap", "sliding_window", "s_aux", "position_bias", "dropout", "output_attentions")
Usual = Callable[[Tensor, Tensor, Tensor], Tensor]


class Flex:
    """Flex attention for the packed batches of one run.

    Args:
        say: called with a note if the numbers or an error forbid it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._tried: dict[tuple[Any, ...], bool] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, packed: dict[str, Any], more: dict[str, Any], usual: Usual
    ) -> Tensor | None:
        """The result (1, N, heads, D) for states (1, heads, N, D), or None if the usual way must compute it.

        Args:
            query: of the N tokens of the sequence.
            key: with as many heads as ``query``, or a divisor of it.
            value: with the heads of ``key``.
            packed: the ``layout`` of the batch; the block mask is kept in it for all blocks.
            more: the further arguments of the model's attention.
            usual: computes the same from query, key and value in the usual way.
        """
        if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
            return None  # compiled blocks, and selective checkpointing, which knows single operations
        if (
            query.device.type not in _DEVICES
            or packed["keys"].shape[1] < _LONG
            or any(_asked(more.get(name)) for name in _MORE)
        ):
            return None
        states = _in_one_dtype(query, key, value)
        kind = (states[0].dtype, *(one.shape[1::2] for one in states))
        ours = partial(_masked, packed, more.get("scaling"))
        if kind not in self._tried:
            most = _LARGEST.get(states[0].dtype, 0.0)
            self._tried[kind] = agrees(
                *_NAMES, lambda: [(difference(states, ours, usual), most, "of the largest number")], self._say
            )
        if not self._tried[kind]:
            return None
        try:  # another length may need another compilation
            return ours(*states)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self._tried[kind] = False
            self._say(failed(*_NAMES, error))
            return None


def _asked(value: Any) -> bool:
    """Whether an argument asks for something; a tensor does, whatever it holds."""
    return isinstance(value, Tensor) or bool(value)


def _masked(packed: dict[str, Any], scaling: float | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``flex`` with the batch's block mask, which is computed once and cached in the layout for all blocks."""
    if "flex" not in packed:
        packed["flex"] = block_mask(packed["until"])
    return flex(query, key, value, packed["flex"], scaling)


def _in_one_dtype(*states: Tensor) -> list[Tensor]:
    """The states as autocast would give them to the usual attention."""
    device = states[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(states)
    return [one.to(torch.get_autocast_dtype(device)) for one in states]


def flex(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None) -> Tensor:
    """Flex attention of (1, heads, N, D) states → (1, N, heads, D)."""
    shared = query.shape[1] // key.shape[1]
    if shared & (shared - 1):  # the kernel shares keys between 2, 4, 8, … heads
        key, value = (one.repeat_interleave(shared, 1) for one in (key, value))
    out: Tensor = _kernel()(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


@cache
def _kernel() -> Callable[..., Tensor]:
    """The compiled kernel. Batches have other lengths every time, so their sizes are no constants of it."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def sees(until: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query may attend to a key, for flex attention.

    Rows lie in lexicographic order, so all tokens after which a key stands in their row lie between the key and ``until`` of it.

    Args:
        until: (N,) the layout's tensor of that name.
    """

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < until[key])

    return mask_mod


def block_mask(until: Tensor) -> Any:
    """The ``BlockMask`` of ``sees``, computed from the ends alone: all pairs of 20,000 tokens would take gigabytes.

    Args:
        until: (N,) the index after the last token that may attend to each token.
    """
    from torch.nn.attention.flex_attention import BlockMask

    count = len(until)
    blocks = -(-count // _BLOCK)
    first = torch.arange(blocks, device=until.device)[:, None] * _BLOCK  # of each block of queries
    # beyond the last token nobody is seen, and a block that reaches there is never full
    key = torch.arange(blocks * _BLOCK, device=until.device)
    end = torch.nn.functional.pad(until, (0, blocks * _BLOCK - count))
    some = torch.maximum(key, first) < torch.minimum(end, first + _BLOCK)
    every = (key <= first) & (end >= first + _BLOCK)
    full = every.view(blocks, blocks, _BLOCK).all(-1)
    partly = some.view(blocks, blocks, _BLOCK).any(-1) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(full), BLOCK_SIZE=_BLOCK, mask_mod=sees(until), seq_lengths=(count, count)
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks, blocks) bool → the number of blocks of keys for each block of queries, and their indices, chosen ones first."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32)[None, None], order.int().contiguous()[None, None]


def difference(states: list[Tensor], found: Usual, usual: Usual) -> float:
    """How far two ways are from each other in outputs and gradients, as a share of the largest number of each.

    It may be called inside a checkpoint, whose own hooks must not see the tensors that are saved here.
    """
    results = []
    slope = None
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: one):
        for way in (usual, found):
            leaves = [one.detach().requires_grad_() for one in states]
            out = way(*leaves)
            if slope is None:  # uneven, so that no gradient cancels
                made = torch.Generator().manual_seed(0)
                slope = torch.randn(out.shape, generator=made).to(out)
            results.append([out.detach(), *torch.autograd.grad(out, leaves, slope.to(out))])
    return relative_difference(results[1], results[0])
