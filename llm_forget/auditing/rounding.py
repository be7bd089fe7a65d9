"""Round a model's weights as quantisers do.

Except for int8, whose activations are rounded too, the rounded weights are written back as floats: a server computes with the
same values. Embeddings and head keep their precision, as in bitsandbytes; in GGUF files they have 8 bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llm_forget.auditing.forms import Quantiser
from llm_forget.errors import UserError
from llm_forget.utils.extras import require_extra

NF4_BLOCK = 64  # bitsandbytes' block size of 4-bit weights
GGUF_BLOCK = 32
_GROUPS = (128, 64, 32)  # int4: the largest of them that divides a row; a whole row if none does
_OUTLIER = 6.0  # bitsandbytes' default: activations above it are multiplied in 16 bits


@torch.no_grad()
def round_weights(model: nn.Module, quantiser: Quantiser) -> nn.Module:
    """Round the weights of the linear layers in place; for int8, replace the layers.

    Args:
        model: in fp32, without an adapter.
        quantiser: how.

    Returns:
        The model.

    Raises:
        UserError: a package is missing, or the model has no linear layer.
    """
    if quantiser == "int8":
        return _in_int8(model)
    rounded = 0
    for name, weight in linear_weights(model):
        weight.copy_(_round_by_name(quantiser, weight, name))
        rounded += 1
    if not rounded:
        raise UserError("the model has no linear layer whose weights could be rounded; leave the rounded forms out")
    if quantiser in ("gguf_q4", "gguf_q8"):
        for module in {id(one): one for one in _outer(model)}.values():
            module.weight.copy_(gguf_rounded(module.weight, "Q8_0"))
    return model


def linear_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and weight (out, in) of each linear layer and stack of experts, without the head. Views: writing changes the model."""
    from transformers.pytorch_utils import Conv1D

    outer = {id(module.weight) for module in _outer(model)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            if id(module.weight) not in outer:
                yield name, module.weight.T if isinstance(module, Conv1D) else module.weight
        elif "expert" in type(module).__name__.lower():
            yield from (
                (f"{name}.{part}", one) for part, one in module.named_parameters(recurse=False) if one.ndim == 3
            )


def _outer(model: Any) -> list[Any]:
    """Embedding and head; the same weight twice if they are tied."""
    found = [getattr(model, name, lambda: None)() for name in ("get_input_embeddings", "get_output_embeddings")]
    return [one for one in found if getattr(one, "weight", None) is not None]


def _round_by_name(quantiser: Quantiser, weight: Tensor, name: str) -> Tensor:
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "nf4": nf4_rounded,
        "int4_rtn": int4_rounded,
        "gguf_q4": lambda one: gguf_rounded(one, "Q4_0"),
        "gguf_q8": lambda one: gguf_rounded(one, "Q8_0"),
    }
    return kinds[quantiser](weight.float())


def nf4_rounded(weight: Tensor) -> Tensor:
    """The values of bitsandbytes' nf4 in blocks of 64.

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """
    require_extra("bitsandbytes", "the nf4 form", "quant")
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return dequantize_4bit(packed, state).reshape(weight.shape).to(weight.dtype)  # type: ignore[no-any-return]


def int4_rounded(weight: Tensor) -> Tensor:
    """Asymmetric round to nearest with 16 levels between the smallest and the largest weight of a group of a row.

    A group of −1, −0.2 and 2 has levels 0.2 apart and stays as it is; −0.25 would become −0.2.
    """
    width = weight.shape[-1]
    groups = weight.reshape(-1, next((size for size in _GROUPS if width % size == 0), width))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    step = ((high - low) / 15).clamp(min=1e-12)
    zero = (-low / step).round()
    codes = (groups / step + zero).round().clamp(0, 15)
    return ((codes - zero) * step).reshape(weight.shape)


def gguf_rounded(weight: Tensor, kind: str) -> Tensor:
    """A round trip through a GGUF type; fp16 if its block does not divide a row, as llama.cpp does."""
    if weight.shape[-1] % GGUF_BLOCK:
        return weight.half().to(weight.dtype)
    require_extra("gguf", "the GGUF forms", "demo")
    from gguf import GGMLQuantizationType, quants

    wanted = GGMLQuantizationType[kind]
    packed = quants.quantize(weight.detach().float().cpu().contiguous().numpy(), wanted)
    return torch.from_numpy(quants.dequantize(packed, wanted)).reshape(weight.shape).to(weight.device, weight.dtype)


def _in_int8(model: nn.Module) -> nn.Module:
    """Replace the linear layers by bitsandbytes' LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339)."""
    require_extra("bitsandbytes", "the int8 form", "quant")
    from bitsandbytes.nn import Int8Params, Linear8bitLt
    from transformers.pytorch_utils import Conv1D

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs a line for each layer and forward
    names = [name for name, _ in linear_weights(model)]
    for name in names:
        layer = model.get_submodule(name) if name in dict(model.named_modules()) else None
        if not isinstance(layer, nn.Linear | Conv1D):
            continue  # stacked experts stay as they are, as in transformers
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        packed = Linear8bitLt(
            weight.shape[1], weight.shape[0], layer.bias is not None, has_fp16_weights=False, threshold=_OUTLIER
        )
        packed.weight = Int8Params(weight.detach().cpu().contiguous(), requires_grad=False, has_fp16_weights=False)
        if layer.bias is not None:
            packed.bias = layer.bias
        model.set_submodule(name, packed.to(weight.device))
    return model
