"""In which type a model multiplies: autocast for one held in bf16, the same in training, measuring and generating."""

from __future__ import annotations

import torch
from torch import nn


def autocast_like(model: nn.Module) -> torch.autocast:
    """Autocast for a model held in bf16, so that its fp32 adapter is multiplied in bf16 as in training; else nothing."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=held_in_bf16(model))


def held_in_bf16(model: nn.Module) -> bool:
    """Whether the model's own weights are bf16; an adapter on it is fp32 all the same."""
    return next(model.parameters()).dtype == torch.bfloat16
