"""What a model's config and modules say about its decoder: sizes, how far its layers look, and what they carry along."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

# Kinds of layers in ``layer_types`` that look at other tokens through attention only, or at none. Any other kind is taken as one
# that carries a state, because new kinds are mostly recurrent.
_STATELESS = re.compile(r"attention$|_sparse$|^(?:sparse|dense|moe|mlp|global|local|full|sliding)$")
_STATEFUL = re.compile(r"linear|lightning|compressed|recurrent|window_attention|reference")
# Parts of the class names of layers that carry a state along the sequence.
_SCANS = re.compile(
    r"(?i:mamba|rwkv|lstm|rglru|recurren|delta(?:net|attention)|linearattention|lightning|shortconv|retention|hyena)|SSM"
)
# Fields with the number of tokens that a layer attends to.
_WINDOWS = re.compile(r"window(?:_size)?$|attention_chunk_size$|local_attention$|index_topk$")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")


def text_config(config: Any) -> Any:
    """The config of the decoder that reads text. A multimodal model has it inside its own config.

    Args:
        config: a transformers config, or a config of remote code that has no such method.
    """
    inner = getattr(config, "get_text_config", None)
    return config if inner is None else inner(decoder=True)


def vocabulary_of(config: Any) -> int:
    """The number of token ids that the model knows."""
    return int(text_config(config).vocab_size)


def rope_limit(config: Any) -> int | None:
    """The longest row with the frequencies of short rows, if rotary frequencies depend on the row length; None if they do not."""
    text = text_config(config)
    given = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [given, *(one for one in given.values() if isinstance(one, dict))]  # one for each layer type in some models
    limits = []
    for one in kinds:
        kind = str(one.get("rope_type") or one.get("type"))
        if kind == "longrope":
            original = getattr(text, "original_max_position_embeddings", None)
            limits.append(one.get("original_max_position_embeddings") or original or text.max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(text.max_position_embeddings)
    return min(map(int, limits), default=None)


def text_decoder(model: Any) -> nn.Module:
    """The decoder of a model, without the towers for images and sound, if the model names it.

    Args:
        model: below any data-parallel wrapper; with or without an adapter.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = base.get_decoder() if hasattr(base, "get_decoder") else base
    return found if isinstance(found, nn.Module) else base


def decoder_configs(model: Any) -> list[Any]:
    """The distinct config objects that the decoder and its wrappers read. Parts of a model may hold copies."""
    decoder = text_decoder(model)
    held = [text_config(model.config), *(getattr(module, "config", None) for module in decoder.modules())]
    return list({id(one): one for one in held if hasattr(one, "_attn_implementation")}.values())


def carries_state(model: Any) -> str | None:
    """The name of a layer that carries a state along the sequence (a recurrence or a convolution); None if there is none.

    Args:
        model: below any data-parallel wrapper.
    """
    text = text_config(model.config)
    for name in ("layer_types", "layers_block_type", "block_types"):
        for kind in getattr(text, name, None) or ():
            if isinstance(kind, str) and (_STATEFUL.search(kind) or not _STATELESS.search(kind)):
                return kind
    for module in text_decoder(model).modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.RNNBase) or _SCANS.search(type(module).__name__):
            return type(module).__name__
    return None


def is_sparse_mixture(config: Any) -> bool:
    """Whether tokens are routed to experts."""
    text = text_config(config)
    return any(isinstance(size := getattr(text, name, None), int) and size > 1 for name in _EXPERTS)


def fits_window(config: Any, tokens: int) -> bool:
    """Whether every layer attends to all of a row's ``tokens`` tokens, with the frequencies that shorter rows have.

    That is, no sliding window, chunk or sparse selection is shorter.
    """
    return all(tokens <= limit for limit in _row_limits(config))


def _row_limits(config: Any) -> Iterator[int]:
    text = text_config(config)
    for name in dir(text) if not hasattr(text, "to_dict") else {**text.to_dict(), **vars(text)}:
        value = getattr(text, name, None)
        for one in value if isinstance(value, list | tuple) else [value]:
            if _WINDOWS.search(name) and isinstance(one, int) and not isinstance(one, bool) and one > 0:
                yield one
    blocks, size = (getattr(text, name, None) for name in ("index_topk_blocks", "index_block_size"))
    if blocks and size:
        yield int(blocks) * int(size)
    limit = rope_limit(config)
    if limit is not None:
        yield limit


def line_limit(config: Any) -> int | None:
    """The longest sequence in which a position's scale does not depend on its place in the sequence; None for no limit.

    Llama 4 scales queries by their place in the sequence, in steps of ``floor_scale`` tokens.
    """
    text = text_config(config)
    floor = getattr(text, "floor_scale", None)
    return int(floor) - 1 if floor and getattr(text, "attn_temperature_tuning", False) else None
