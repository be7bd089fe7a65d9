"""Ext-Sub's projection: the part of a forget adapter that it does not share with a retain adapter.

Works on the rows of ΔW. The shared direction of two rows bisects the angle between them. The component of the forget row along
it stays in the model; the remainder (the "deficiency") is subtracted.

Source: Hu et al. 2023, arXiv:2308.08090, "extraction before subtraction". The authors' code (Ext-Sub, ext_sub.py) also works by
rows, on a dense ΔW, and writes an adapter of full rank. Here it is computed exactly on the factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm_forget.adapters.lora import Factors
from llm_forget.errors import AdapterError


def deficiency(forget: Factors, retain: Factors) -> Factors:
    """The part of the forget adapter's ΔW that is orthogonal, row by row, to the direction shared with the retain adapter.

    For a row w of the forget ΔW and a row v of the retain ΔW it is ``w − ⟨w, c⟩ c``, with c the unit vector along ``w/‖w‖ +
    v/‖v‖``. With L the length of that sum, ⟨w, c⟩ = ‖w‖ (1 + cos) / L and L² = 2 + 2 cos, so this equals ``½ (w − ‖w‖ v/‖v‖)``.
    That is linear in the rows, so the result is exactly an adapter whose rank is the sum of both ranks. If both adapters have
    the same A, it keeps their rank.

    Args:
        forget: factors of the adapter trained on the forget set, ΔW (out, in), any rank.
        retain: factors of the adapter trained on retain rows, same shape of ΔW.

    Returns:
        Factors with scaling 1, in fp32. w = (1, 0) and v = (0, 1) give (½, −½); the same direction gives 0, the opposite one w.
        If v is zero, nothing is shared and the result is w.

    Raises:
        AdapterError: the shapes differ.
    """
    if forget.shape != retain.shape:
        raise AdapterError(
            f"the forget adapter has a layer of shape {forget.shape} where the retain adapter has {retain.shape}; train both "
            "on one base"
        )
    w, v = (factors.B.double() * factors.scaling for factors in (forget, retain))
    size_w, size_v = _row_norms(w, forget.A.double()), _row_norms(v, retain.A.double())
    shares = size_v > 0
    of_w = torch.where(shares, 0.5, 1.0)[:, None] * w
    of_v = torch.where(shares, -0.5 * size_w / size_v, torch.zeros_like(size_v))[:, None] * v
    if torch.equal(forget.A, retain.A):
        return Factors(forget.A.float(), (of_w + of_v).float(), 1.0)
    return Factors(torch.cat([forget.A, retain.A]).float(), torch.cat([of_w, of_v], dim=1).float(), 1.0)


def _row_norms(b: Tensor, a: Tensor) -> Tensor:
    """‖row i of b·a‖, without forming b·a."""
    return ((b @ (a @ a.T)) * b).sum(-1).clamp(min=0).sqrt()
