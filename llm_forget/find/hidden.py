"""Vectors of texts from a model's own hidden states, so that no second model is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
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
        texts: only their first 256 tokens are read. One with fewer than two tokens has the vector 0.
    """
    model = given.model
    tokenized = [given.tokenizer(text[: 16 * _MOST_TOKENS])["input_ids"][:_MOST_TOKENS] for text in texts]
    rows = [Encoded(str(at), tuple(ids), 1) for at, ids in enumerate(tokenized) if len(ids) > 1]
    device = next(model.parameters()).device
    pad = given.tokenizer.pad_token_id or 0
    depth = hidden_layer(model, None)
    middle = max(depth, round(depth * 16 / 7))  # hidden_layer gives 7/32 of the depth
    found: dict[int, NDArray[np.float64]] = {}
    with evaluating(model), torch.no_grad(), autocast_like(model):
        for batch in length_batches([len(row.input_ids) for row in rows], _BATCH_TOKENS):
            inputs = {name: value.to(device) for name, value in collate([rows[at] for at in batch], pad).items()}
            scores = score_parts(model, inputs, [Part(slice(None), hidden=True)], layer=middle)[0]
            if scores.hidden is None:
                raise RuntimeError("the model gave no hidden states")
            mask = scores.mask[..., None]
            mean = (scores.hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            for at, vector in zip(batch, mean.double().cpu().numpy(), strict=True):
                found[int(rows[at].id)] = vector
    if not found:
        return np.zeros((len(texts), 1))
    mean_of_all = np.mean(list(found.values()), axis=0)
    for at in range(len(texts)):
        found.setdefault(at, mean_of_all)
    vectors = np.stack([found[at] for at in range(len(texts))]) - mean_of_all
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit
