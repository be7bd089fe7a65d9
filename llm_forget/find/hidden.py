"""Vectors of texts from a model's own hidden states, so that no second model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from llm_forget.data.collate import collate
from llm_forget.data.encode import encode
from llm_forget.data.examples import Example, example_id
from llm_forget.find.search import Model
from llm_forget.model.batching import evaluating, length_batches
from llm_forget.model.logprobs import Part, hidden_layer, score_parts
from llm_forget.model.weights import autocast_like

_MOST_TOKENS = 256  # of a text; the rest is not read
_BATCH_TOKENS = 2048


def text_vectors(given: Model, texts: Sequence[str]) -> NDArray[np.float64]:
    """(N, H) mean hidden state of each text after the middle block, centred over the texts and of length 1.

    Without centring, all vectors point in nearly the same direction (Ethayarajh 2019, arXiv:1909.00512).

    Args:
        given: the model.
        texts: at least two; only their first 256 tokens are read.
    """
    model = given.model
    encoding = replace(
        given.encoding, max_length=min(_MOST_TOKENS, given.encoding.max_length), truncate=True, chunk=False
    )
    rows = [
        encode(given.tokenizer, Example(id=example_id("", text), prompt="", answer=text), encoding)
        for text in (one[: 16 * _MOST_TOKENS] for one in texts)
    ]
    device = next(model.parameters()).device
    pad = given.tokenizer.pad_token_id or 0
    depth = hidden_layer(model, None)
    middle = max(depth, round(depth * 16 / 7))  # hidden_layer gives 7/32 of the depth
    found: list[NDArray[np.float64]] = [np.zeros(0)] * len(rows)
    with evaluating(model), torch.no_grad(), autocast_like(model):
        for batch in length_batches([len(row.input_ids) for row in rows], _BATCH_TOKENS):
            inputs = {name: value.to(device) for name, value in collate([rows[at] for at in batch], pad).items()}
            scores = score_parts(model, inputs, [Part(slice(None), hidden=True)], layer=middle)[0]
            if scores.hidden is None:
                raise RuntimeError("the model gave no hidden states")
            mask = scores.mask[..., None]
            mean = (scores.hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            for at, vector in zip(batch, mean.double().cpu().numpy(), strict=True):
                found[at] = vector
    vectors = np.stack(found)
    vectors -= vectors.mean(0)
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
