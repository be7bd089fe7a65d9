"""Pad encoded rows on the right, and build the attention mask and the answer mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError


def collate(
    rows: Sequence[Encoded], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, torch.Tensor]:
    """Pad encoded examples on the right into one batch.

    Both masks are built from lengths and never from token ids. With ``pad == eos``, a mask built from ids would hide the
    end token of the answer, which is scored like every other answer token.

    Args:
        rows: the examples, at least one.
        pad_token_id: padding token; any id of the vocabulary works.
        pad_to_multiple_of: round the width up to a multiple of this (tensor cores like 8).

    Returns:
        ``input_ids`` (B, T) long, ``attention_mask`` (B, T) long with 1 at the row's own tokens, and ``answer_mask``
        (B, T) bool, true at the answer tokens.

    Raises:
        DataError: the batch is empty, a row has no prompt or answer tokens, or ``pad_to_multiple_of`` is below 1.
    """
    if not rows:
        raise DataError("the batch has 0 examples; at least 1 is needed: check the size of the data set")
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise DataError(f"pad_to_multiple_of is {pad_to_multiple_of}; give a whole number of 1 or more, or None")
    for row in rows:
        if not 1 <= row.prompt_length < len(row.input_ids):
            raise DataError(
                f"example {row.id} has {len(row.input_ids)} tokens, of which {row.prompt_length} are prompt; at least "
                "one prompt token and one answer token are needed: create rows with encode_all"
            )
    width = max(len(row.input_ids) for row in rows)
    if pad_to_multiple_of is not None:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of

    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, : len(row.input_ids)] = torch.tensor(row.input_ids, dtype=torch.long)

    position = torch.arange(width)
    lengths = torch.tensor([len(row.input_ids) for row in rows]).unsqueeze(1)
    prompt_lengths = torch.tensor([row.prompt_length for row in rows]).unsqueeze(1)
    inside = position < lengths
    return {
        "input_ids": input_ids,
        "attention_mask": inside.long(),
        "answer_mask": inside & (position >= prompt_lengths),
    }
