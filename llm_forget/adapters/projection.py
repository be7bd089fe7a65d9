"""Ext-Sub's projection: of what an adapter learned on the forget set, only what it does not share with one of retain rows.

Row by row of ΔW, the direction that both adapters have in common is half way between their own directions; the part of the
forget adapter along it is left in the model, and the rest, its deficiency, is what is subtracted.

Source: Hu et al. 2023, arXiv:2308.08090, extraction before subtraction; that it goes by rows was checked in the authors' code
(Ext-Sub, ext_sub.py, read in a copy), which works on dense ΔW and writes an adapter of full rank. Here it is exact in factors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llm_forget.adapters.arithmetic import combine
from llm_forget.adapters.lora import Adapter, Factors
from llm_forget.adapters.lora_config import explicit_targets, plain_config
from llm_forget.errors import AdapterError


def deficiency(forget: Factors, retain: Factors) -> Factors:
    """The part of the forget adapter's ΔW that is not along what it shares with the retain adapter's.

    For each row w of the forget ΔW and v of the retain ΔW it is ``w − ⟨w, c⟩ c`` with c the unit vector along ``w/‖w‖ +
    v/‖v‖``. With ⟨w, c⟩ = ‖w‖ (1 + cos) / L and L² = 2 + 2 cos, L the length of that sum, this is ``½ (w − ‖w‖ v/‖v‖)``:
    linear in the rows, so that the result is an adapter of the sum of both ranks, exactly. Two adapters with the same A
    keep their rank.

    Args:
        forget: factors of the adapter that was trained towards the forget set, (out, in) of any rank.
        retain: of the one trained on retain rows, the same shape.

    Returns:
        Factors with scaling 1, in fp32. w = (1, 0) and v = (0, 1) give (½, −½); v along w gives 0, v against w gives w. A
        row that is zero in the retain adapter shares nothing, and stays.

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


def extract(forget: Adapter, retain: Adapter) -> Adapter:
    """``deficiency`` of every layer that both adapters change; layers that only the forget adapter changes stay as they are.

    Args:
        forget: trained towards the forget set.
        retain: trained on retain rows, on the same base.

    Raises:
        AdapterError: they are for different bases, or a layer's shapes differ.
    """
    base = combine([forget, retain], [1.0, 1.0]).base  # which also checks that both are for one base
    modules = {
        name: deficiency(factors, retain.modules[name])
        if name in retain.modules
        else replace(factors, A=factors.A.float(), B=factors.B.float() * factors.scaling, scaling=1.0)
        for name, factors in forget.modules.items()
    }
    targets = set(explicit_targets(forget.config, forget.modules))
    config = plain_config({name: factors.rank for name, factors in modules.items()}, targets, forget.config)
    return Adapter(config, modules, base)


def _row_norms(b: Tensor, a: Tensor) -> Tensor:
    """‖row i of b·a‖, without forming b·a."""
    return ((b @ (a @ a.T)) * b).sum(-1).clamp(min=0).sqrt()
