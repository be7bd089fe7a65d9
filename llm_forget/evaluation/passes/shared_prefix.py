"""Compute shared prefixes once: rows become a tree of tokens, flattened to a sequence with a tree attention mask.

Answers to one question share its prompt, all prompts share the system turn, and false answers often share words with the
right one. A token's log-prob depends only on its ancestors in the tree, so each node is computed once for all of its rows.
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
from llm_forget.model.layout import common_prefix
from llm_forget.model.logprobs import logits_at
from llm_forget.model.packing import KERNELS, additive_mask
from llm_forget.model.structure import carries_state, fits_window, line_limit, text_config

# Tokens per pack; the cost of attention grows with the square. Speed-up over separate rows in fp32 and bf16, measured on one
# core with a model of 135 million weights and seven answers per TOFU question: 2.6 and 2.2 with 256 tokens, 1.7 and 1.9 with
# 128, 2.4 and 1.7 with 384.
PACK_TOKENS = 256
# A model supports the mask if the mean difference of log-probs between packed and single rows is at most this many times that
# between padded and single rows: all three have different shapes, so they are rounded differently.
_TIMES = 3.0
# The least that is allowed, because a padded row may by chance equal the single row to the bit.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}
_ROUNDING_HALF = 0.02


@dataclass(frozen=True)
class Pack:
    """A tree of rows with N nodes; each parent comes before its children.

    Attributes:
        rows: the indices of the rows.
        tokens: (N) the token of each node.
        parents: (N) the parent of each node, −1 for a first token.
        paths: for each row, the nodes of its tokens.
    """

    rows: tuple[int, ...]
    tokens: list[int] = field(repr=False)
    parents: list[int] = field(repr=False)
    paths: list[list[int]] = field(repr=False)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


def pack_rows(rows: Sequence[Encoded], indices: Sequence[int], pack_tokens: int = PACK_TOKENS) -> list[Pack]:
    """Pack rows into trees of at most ``pack_tokens`` tokens; a longer row has a tree of its own.

    Args:
        rows: the encoded answers.
        indices: the rows to pack.
        pack_tokens: most tokens per tree.

    Returns:
        The trees; each row is in exactly one.
    """
    packs: list[Pack] = []
    before: tuple[int, ...] = ()
    # In lexicographic order, the row just before shares the longest prefix of all earlier rows.
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
    """Score the answers of all rows of the packs in one forward pass, without gradients or dropout.

    Args:
        model: a causal language model on its device.
        rows: the packed rows.
        packs: at least one pack.
        pad_token_id: any id of the vocabulary.

    Returns:
        For each row of each pack, in order: (4, answer tokens) log-prob, hit, mean and standard deviation.
    """
    scored = [_scored_nodes(rows, pack) for pack in packs]
    inputs = _inputs(packs, pad_token_id)
    positions = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for place, (pack, nodes) in enumerate(zip(packs, scored, strict=True)):
        positions[place, [pack.parents[node] for node in nodes]] = True
    weight = next(model.parameters())
    inputs["attention_mask"] = additive_mask(inputs["attention_mask"], weight.dtype)
    # index of each position's logits in the output of the head
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
    """The nodes that are answer tokens of at least one row. First tokens are not included, because they have no prediction."""
    nodes = {
        node
        for row, path in zip(pack.rows, pack.paths, strict=True)
        for node in path[len(path) - rows[row].answer_length :]
    }
    return sorted(nodes)


def _inputs(packs: Sequence[Pack], pad_token_id: int) -> dict[str, Tensor]:
    """``input_ids`` and ``position_ids`` (B, T), and ``attention_mask`` (B, 1, T, T): a node sees itself and its ancestors."""
    width = max(len(pack) for pack in packs)
    ids = np.full((len(packs), width), pad_token_id, dtype=np.int64)
    depths = np.zeros((len(packs), width), dtype=np.int64)
    # padding sees itself, because a position that sees nothing gives NaN
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
    """The share of the rows' tokens that packing saves, in [0, 1)."""
    whole = sum(len(rows[row].input_ids) for pack in packs for row in pack.rows)
    return 1.0 - sum(map(len, packs)) / whole if whole else 0.0


def fits_trees(model: Any, rows: Sequence[Encoded]) -> bool:
    """Whether the model allows trees: its attention takes any mask, its window fits the longest row, and no layer has a state."""
    longest = max((len(row.input_ids) for row in rows), default=0)
    kernel, limit = getattr(text_config(model.config), "_attn_implementation", None), line_limit(model.config)
    fits = fits_window(model.config, longest) and (limit is None or max(longest, PACK_TOKENS) <= limit)
    return kernel in KERNELS and fits and carries_state(model) is None


def reads_trees(model: Any, rows: Sequence[Encoded], pad_token_id: int) -> bool:
    """Whether a row has the same log-probs in a tree as alone, tested with this model on a few short rows.

    Models with recurrent layers, or with attention that ignores position ids, fail the test.

    Args:
        model: a causal language model on its device.
        rows: rows for the test, at least one, each with an answer token.
        pad_token_id: any id of the vocabulary.
    """
    few = sorted(rows, key=lambda row: len(row.input_ids))[:3]
    packs = pack_rows(few, range(len(few)), pack_tokens=1 << 30)
    try:
        found = dict(zip(packs[0].rows, score_packs(model, few, packs, pad_token_id), strict=True))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False  # the model does not accept position ids or this mask, so its rows are scored separately
    alone = [score_encoded(model, [row], pad_token_id=pad_token_id).token_logps for row in few]
    together = score_encoded(model, few, pad_token_id=pad_token_id)
    padded = max(float(np.abs(together.row(index).token_logps - one).mean()) for index, one in enumerate(alone))
    packed = max(float(np.abs(found[index][0] - one).mean()) for index, one in enumerate(alone))
    least = _ROUNDING.get(next(model.parameters()).dtype, _ROUNDING_HALF)
    return bool(packed <= max(_TIMES * padded, least))
