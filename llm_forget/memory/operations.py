"""Floating-point operations of matrix products and attention, from the shapes of their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_ATEN = torch.ops.aten
# product → which of its arguments are multiplied
_PRODUCTS = {
    _ATEN.mm: (0, 1),
    _ATEN.bmm: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.baddbmm: (1, 2),
    _ATEN._grouped_mm: (0, 1),
}
# kernel → its first of query and key, and its products of the size of queries by keys
_ATTENTION = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (1, 5),
}


def operations(func: Any, args: Sequence[Any]) -> float:
    """The operations of one call; a multiplication and an addition are two.

    Elementwise operations count as none: they are bound by memory, not by arithmetic.

    Args:
        func: an operator of torch.
        args: its positional arguments.

    Returns:
        (2, 3) · (3, 5) is 60. The backward pass of attention is 2.5 times the forward pass, because it computes the scores again.
    """
    packet = getattr(func, "overloadpacket", func)
    if packet in _PRODUCTS:
        left, right = (args[place] for place in _PRODUCTS[packet])
        return 2.0 * float(left.numel() * right.shape[-1])
    if packet in _ATTENTION:
        first, products = _ATTENTION[packet]
        query, key = args[first], args[first + 1]
        return 2.0 * products * float(query.numel() * key.shape[-2])
    return 0.0
