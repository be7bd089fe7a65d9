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
    """(N, H) the vectors of ``text_means``, centred over the texts."""
    return centred(text_means(given, texts))


def centred(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors less their mean, of length 1; 0 where there is none.

    Without centring, all vectors point in nearly the same direction (Ethayarajh 2019, arXiv:1909.00512).

    Args:
        means: (N, H) NaN in the rows of texts without a vector.
    """
    known: NDArray[np.bool_] = np.asarray(np.isfinite(means).all(axis=1))
    if not known.any():
        return np.zeros_like(means)
    vectors = np.where(known[:, None], means - means[known].mean(axis=0), 0.0)
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def text_means(given: Model, texts: Sequence[str]) -> NDArray[np.float64]:
    """(N, H) mean hidden state of each text after the middle block; NaN for a text with fewer than two tokens.

    Args:
        given: the model.
        texts: only their first 256 tokens are read.
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
    means = np.full((len(texts), len(next(iter(found.values()))) if found else 1), np.nan)
    for at, vector in found.items():
        means[at] = vector
    return means
