"""What a model can read at all: the ids of its embedding, and the positions of its table if it has one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError
from llm_forget.model.head import below_wrapper
from llm_forget.model.structure import text_config

# Names of tables that are read by position, learned or computed. Tables of relative distances have no end.
_TABLE = re.compile(
    r"(?:^|\.)(?:wpe|pos_encoding|positions_embed|embed_positions|position_embeddings?|pos_embed\w*)(?:\.weight)?$"
)
_OTHER_INPUT = re.compile(r"vision|visual|image|audio|speech|relative")
_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "n_ctx",
    "max_target_positions",
)
_SHOWN = 5


def embedding_rows(model: nn.Module) -> int | None:
    """The number of token ids that the model's embedding has; None if it cannot be told (weights in shards)."""
    embedding = below_wrapper(model).get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    return int(weight.shape[0]) if weight is not None and weight.dim() == 2 and weight.shape[0] else None


def position_limit(model: nn.Module) -> int | None:
    """The longest row that the model's position table allows; None for models without one, such as those with rotary positions.

    Args:
        model: wrapped or not, with or without an adapter.
    """
    inner = below_wrapper(model)
    stated = _stated_length(inner)
    limits = []
    for name, module in inner.named_modules():
        if hasattr(module, "build_mpt_alibi_tensor") and stated is not None:
            limits.append(stated)  # its distances are computed up to there
        for own, table in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            whole = f"{name}.{own}"
            if table.dim() != 2 or not _TABLE.search(whole) or _OTHER_INPUT.search(whole):
                continue
            rows = int(table.shape[0])
            padding = getattr(module, "padding_idx", None)
            if padding is not None and name.endswith("embeddings.position_embeddings"):
                rows -= padding + 1  # RoBERTa counts positions from there
            limits.append(rows if stated is None else min(rows, stated))  # OPT has more rows than positions
    return min((limit for limit in limits if limit > 0), default=None)


def _stated_length(model: Any) -> int | None:
    """The longest row that the config names."""
    config = text_config(model.config)
    found = (getattr(config, name, None) for name in _LENGTHS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def check_rows(model: nn.Module, rows: Sequence[Encoded], role: str) -> list[str]:
    """Check that a model can read rows, before an index error inside it (or, on a GPU, an abort) would say so.

    Args:
        model: wrapped or not.
        rows: encoded rows.
        role: their set, for messages.

    Returns:
        At most one note, for rows that are longer than those the model was made for.

    Raises:
        DataError: a token has no row in the embedding, or a row is longer than the position table.
    """
    known, limit, stated = embedding_rows(model), position_limit(model), _stated_length(below_wrapper(model))
    unknown = [row for row in rows if known is not None and row.input_ids and max(row.input_ids) >= known]
    if unknown:
        tokens = sorted({token for row in unknown for token in row.input_ids if token >= (known or 0)})
        raise DataError(
            f"{len(unknown)} of {len(rows)} rows of the {role} set hold tokens that the model's embedding of {known} rows does "
            f"not have (ids {_listed(tokens)}; at {places_of(unknown)}): the tokenizer has more tokens than the model. Use the "
            "model's own tokenizer, or resize the embedding and train it first; if only the end token is missing, set "
            "add_end_token: false"
        )
    long = [row for row in rows if limit is not None and len(row.input_ids) > limit]
    if long:
        longest = max(len(row.input_ids) for row in long)
        raise DataError(
            f"{len(long)} of {len(rows)} rows of the {role} set are longer than the {limit} positions that the model knows (the "
            f"longest has {longest} tokens; at {places_of(long)}): set encoding.max_length to {limit} or less, and chunk: true "
            "to cut long rows into parts"
        )
    beyond = [] if limit is not None or stated is None else [row for row in rows if len(row.input_ids) > stated]
    if beyond:
        return [
            f"{len(beyond)} of {len(rows)} rows of the {role} set are longer than the {stated} tokens that the model was made "
            "for (max_position_embeddings); it may read them badly: lower encoding.max_length"
        ]
    return []


def padding_id(tokenizer: Any, model: nn.Module) -> int:
    """A token id to pad with: the tokenizer's padding or EOS token if the model's embedding has it, else 0.

    Masks depend on positions, so any id works that has a row.
    """
    known = embedding_rows(model)
    wanted = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(one) for one in wanted if one is not None and (known is None or 0 <= one < known)), 0)


def places_of(rows: Sequence[Encoded]) -> str:
    """Where the first rows were read, for messages."""
    return _listed(list(dict.fromkeys(row.place for row in rows)))


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
