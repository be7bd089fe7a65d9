"""What rows have in common is encoded once: rows become a tree of tokens, laid out in a line under a tree-shaped mask.

Answers to one question share its prompt, all prompts share the system turn, and false answers share words with the right
one. A token's log-prob depends on its ancestors alone, so each node of the tree is computed once for all rows through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.passes.score import score_encoded, scores_in_chunks
from llm_forget.evaluation.tokens import Floats
from llm_forget.model.batching import evaluating
from llm_forget.model.logprobs import logits_at
from llm_forget.model.packing import KERNELS, additive_mask, common_prefix, fits_window

# Tokens of a pack: attention grows with its square. On one core, seven answers to each question of TOFU by a model of 135
# million weights: 2.6 and 2.2 times as fast as row by row in fp32 and bf16 at 256, 1.7 and 1.9 at 128, 2.4 and 1.7 at 384.
PACK_TOKENS = 256
# How far log-probs of the two ways may lie apart on average before the model is taken to read the mask in another way: well
# above rounding, well below what wrongly attended tokens do.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF = 0.2


@dataclass(frozen=True)
class Pack:
    """Rows as one tree, its N nodes in an order in which parents come first.

    Attributes:
        rows: which rows, by their places in the list that was packed.
        tokens: (N) the token of each node.
        parents: (N) the node before it, −1 for a first token.
        paths: for each row, the nodes of its tokens.
    """

    rows: tuple[int, ...]
    tokens: list[int] = field(repr=False)
    parents: list[int] = field(repr=False)
    paths: list[list[int]] = field(repr=False)

    def __len__(self) -> int:
        """Tokens that it takes."""
        return len(self.tokens)


def pack_rows(rows: Sequence[Encoded], indices: Sequence[int], pack_tokens: int = PACK_TOKENS) -> list[Pack]:
    """Put rows into trees of at most so many tokens; a longer row is a tree of its own.

    Args:
        rows: encoded answers.
        indices: which of them.
        pack_tokens: tokens of a tree.

    Returns:
        The trees, each row in one of them.
    """
    packs: list[Pack] = []
    before: tuple[int, ...] = ()
    # In lexicographic order no earlier row shares more with a row than the one just before it.
    for index in sorted(indices, key=lambda one: (rows[one].input_ids, one)):
        ids = rows[index].input_ids
        shared = common_prefix(before, ids) if packs else 0
        if not packs or len(packs[-1]) + len(ids) - shared > pack_tokens:
            packs.append(Pack((), [], [], []))
            shared = 0
        packs[-1] = _grow(packs[-1], index, ids, shared)
        before = ids
    return packs


def _grow(pack: Pack, index: int, ids: tuple[int, ...], shared: int) -> Pack:
    path = pack.paths[-1][:shared] if shared else []
    for token in ids[shared:]:
        pack.parents.append(path[-1] if path else -1)
        path.append(len(pack.tokens))
        pack.tokens.append(token)
    pack.paths.append(path)
    return Pack((*pack.rows, index), pack.tokens, pack.parents, pack.paths)


def score_packs(model: nn.Module, rows: Sequence[Encoded], packs: Sequence[Pack], pad_token_id: int) -> list[Floats]:
    """Score the answers of all rows of some packs in one forward, without gradient or dropout.

    Args:
        model: a causal language model on its device.
        rows: the rows that were packed.
        packs: at least one.
        pad_token_id: any id of the vocabulary.

    Returns:
        For each row of each pack, in order: (4, answer tokens) log-prob, hit, mean and spread over the vocabulary.
    """
    scored = [_scored_nodes(rows, pack) for pack in packs]
    inputs = _inputs(packs, pad_token_id)
    positions = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for place, (pack, nodes) in enumerate(zip(packs, scored, strict=True)):
        positions[place, [pack.parents[node] for node in nodes]] = True
    weight = next(model.parameters())
    inputs["attention_mask"] = additive_mask(inputs["attention_mask"], weight.dtype)
    # where the logits of a position lie among all that the head computes
    logit_of = (positions.flatten().cumsum(0) - 1).reshape(positions.shape)
    sources = torch.cat(
        [logit_of[place, [packs[place].parents[node] for node in nodes]] for place, nodes in enumerate(scored)]
    )
    targets = torch.tensor([packs[place].tokens[node] for place, nodes in enumerate(scored) for node in nodes])
    with evaluating(model), torch.no_grad():
        logits = logits_at(
            model, positions.to(weight.device), **{name: tensor.to(weight.device) for name, tensor in inputs.items()}
        )
        values = scores_in_chunks(logits, sources.to(logits.device), targets.to(logits.device))
    found = []
    start = 0
    for pack, nodes in zip(packs, scored, strict=True):
        of_nodes = np.zeros((4, len(pack)))
        of_nodes[:, nodes] = values[:, start : start + len(nodes)]
        start += len(nodes)
        found += [
            of_nodes[:, path[len(path) - rows[row].answer_length :]]
            for row, path in zip(pack.rows, pack.paths, strict=True)
        ]
    return found


def _scored_nodes(rows: Sequence[Encoded], pack: Pack) -> list[int]:
    """The nodes that are answer tokens of some row; a first token is none, since nothing predicts it."""
    nodes = {
        node
        for row, path in zip(pack.rows, pack.paths, strict=True)
        for node in path[len(path) - rows[row].answer_length :]
    }
    return sorted(nodes)


def _inputs(packs: Sequence[Pack], pad_token_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``position_ids`` (B, T), and ``attention_mask`` (B, 1, T, T): itself and its ancestors."""
    width = max(len(pack) for pack in packs)
    ids = np.full((len(packs), width), pad_token_id, dtype=np.int64)
    depths = np.zeros((len(packs), width), dtype=np.int64)
    # padding sees itself: a position that sees nothing would be NaN
    mask = np.broadcast_to(np.eye(width, dtype=bool), (len(packs), width, width)).copy()
    for place, pack in enumerate(packs):
        ids[place, : len(pack)] = pack.tokens
        for node, parent in enumerate(pack.parents):
            if parent >= 0:
                mask[place, node, :node] |= mask[place, parent, :node]
                depths[place, node] = depths[place, parent] + 1
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(depths),
        "attention_mask": torch.from_numpy(mask)[:, None],
    }


def saved_share(rows: Sequence[Encoded], packs: Sequence[Pack]) -> float:
    """Which share of the rows' tokens need not be computed again, in [0, 1)."""
    whole = sum(len(rows[row].input_ids) for pack in packs for row in pack.rows)
    return 1.0 - sum(map(len, packs)) / whole if whole else 0.0


def fits_trees(model: Any, rows: Sequence[Encoded]) -> bool:
    """Whether a model's settings allow trees for these rows: a kernel that takes any mask, and no shorter window."""
    longest = max((len(row.input_ids) for row in rows), default=0)
    return getattr(model.config, "_attn_implementation", None) in KERNELS and fits_window(model.config, longest)


def reads_trees(model: Any, rows: Sequence[Encoded], pad_token_id: int) -> bool:
    """Whether this model gives a row in a tree the log-probs that it gives the row by itself, found out on a few short rows.

    Recurrent layers, and attention that knows nothing of position ids, do not.

    Args:
        model: a causal language model on its device.
        rows: rows to try it on, each with an answer token, at least one.
        pad_token_id: any id of the vocabulary.
    """
    few = sorted(rows, key=lambda row: len(row.input_ids))[:3]
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, _TOLERANCE_HALF)
    packs = pack_rows(few, range(len(few)), pack_tokens=1 << 30)
    try:
        found = dict(zip(packs[0].rows, score_packs(model, few, packs, pad_token_id), strict=True))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False  # position ids or a mask of this shape are refused: such a model is scored row by row
    alone = score_encoded(model, few, pad_token_id=pad_token_id)
    apart = [np.abs(found[index][0] - alone.row(index).token_logps) for index in range(len(few))]
    return all(float(np.nan_to_num(one).mean()) <= tolerance for one in apart)
