"""Test that shared prefixes are encoded once and that every score equals that of the row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from evaluation_examples import random_rows, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Lfm2Config

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.passes import cached as scoring
from llm_forget.evaluation.passes import shared_prefix
from llm_forget.evaluation.passes.cached import score_rows
from llm_forget.evaluation.passes.score import score_encoded
from llm_forget.evaluation.passes.shared_prefix import fits_trees, pack_rows, reads_trees, saved_share, score_packs
from llm_forget.evaluation.tokens import TokenScores

FIELDS = ("token_logps", "vocab_mean", "vocab_std")
ids = st.lists(st.integers(0, 2), min_size=2, max_size=8).map(tuple)


def answers(questions: int = 4, others: int = 5, seed: int = 0) -> list[Encoded]:
    """Return shuffled questions with several answers each, all after one system turn."""
    draw = np.random.default_rng(seed)
    system = tuple(draw.integers(0, 90, 5).tolist())
    rows = []
    for question in range(questions):
        prompt = system + tuple(draw.integers(0, 90, int(draw.integers(2, 9))).tolist())
        for other in range(others):
            answer = tuple(draw.integers(0, 90, int(draw.integers(1, 12))).tolist())
            rows.append(Encoded(f"{question}.{other}", prompt + answer, len(prompt)))
    return [rows[index] for index in draw.permutation(len(rows))]


def assert_alike(found: TokenScores, expected: TokenScores) -> None:
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.hits.tolist() == expected.hits.tolist()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name)
    np.testing.assert_allclose(found.mean_logps(), expected.mean_logps(), atol=1e-5)


@given(st.lists(ids, max_size=12), st.integers(2, 20))
def test_packs_hold_every_row_and_no_duplicate_nodes(tokens: list[tuple[int, ...]], most: int) -> None:
    rows = [Encoded(str(index), one, 1) for index, one in enumerate(tokens)]
    packs = pack_rows(rows, range(len(rows)), most)
    assert sorted(row for pack in packs for row in pack.rows) == list(range(len(rows)))
    for pack in packs:
        assert len(pack) <= most or len(pack.rows) == 1 or len(set(map(tuple, pack.paths))) == 1
        assert all(parent < node for node, parent in enumerate(pack.parents))
        nodes = list(zip(pack.parents, pack.tokens, strict=True))
        assert len(set(nodes)) == len(nodes), "a node is its parent and its token"
        for row, path in zip(pack.rows, pack.paths, strict=True):
            assert tuple(pack.tokens[node] for node in path) == rows[row].input_ids
            assert [pack.parents[node] for node in path] == [-1, *path[:-1]]


def test_share_of_saved_tokens() -> None:
    """Three rows of 4 tokens share 3 tokens, then 1: 4 + 1 + 3 of 12 tokens remain, so a third is saved."""
    rows = [Encoded("a", (1, 2, 3, 4), 1), Encoded("b", (1, 2, 3, 5), 1), Encoded("c", (1, 7, 8, 9), 1)]
    packs = pack_rows(rows, range(3))
    assert [len(pack) for pack in packs] == [8]
    assert saved_share(rows, packs) == pytest.approx(1 / 3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("most", [16, 60, 1000])
def test_scores_equal_those_of_single_rows(attention: str, most: int) -> None:
    model = tiny_model()
    model.set_attn_implementation(attention)
    rows = [*answers(), Encoded("twice", answers()[0].input_ids, 3), Encoded("whole", answers()[1].input_ids, 1)]
    expected = score_encoded(model, rows, pad_token_id=0)
    packs = pack_rows(rows, range(len(rows)), most)
    found = dict(zip([row for pack in packs for row in pack.rows], score_packs(model, rows, packs, 0), strict=True))
    for index in range(len(rows)):
        one = expected.row(index)
        np.testing.assert_allclose(found[index], [one.token_logps, one.hits, one.vocab_mean, one.vocab_std], atol=2e-5)


def test_rows_with_a_shared_prefix_need_fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_model(), answers()
    expected = score_rows(model, rows, pad_token_id=0, shared_prefix=False)
    seen = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    assert_alike(score_rows(model, rows, pad_token_id=0, batch_tokens=256), expected)
    assert sum(seen) < 0.8 * sum(len(row.input_ids) for row in rows)
    # rows without a shared prefix are scored in ordinary batches
    apart = random_rows(9, 90)
    monkeypatch.setattr(scoring, "score_packs", lambda *_: pytest.fail("packed"))
    assert_alike(score_rows(model, apart, pad_token_id=0), score_encoded(model, apart, pad_token_id=0))


def test_empty_answers_keep_their_position() -> None:
    rows = answers()
    rows.insert(3, Encoded("none", rows[0].input_ids, len(rows[0].input_ids)))
    found = score_rows(tiny_model(), rows, pad_token_id=0)
    assert np.isnan(found.mean_logps()).tolist() == [index == 3 for index in range(len(rows))]
    assert len(score_rows(tiny_model(), [], pad_token_id=0)) == 0


def test_a_model_without_tree_attention_is_scored_row_by_row() -> None:
    """One model mixes each token with the previous one and ignores the mask; kernels and windows are detected by name."""
    model, rows = tiny_model(), answers()
    assert fits_trees(model, rows)
    assert reads_trees(model, rows, 0)
    model.config.sliding_window = 6
    assert not fits_trees(model, rows)
    model.config.sliding_window = None

    def mix(_: torch.nn.Module, __: object, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1)

    handle = model.model.embed_tokens.register_forward_hook(mix)
    assert not reads_trees(model, rows, 0)
    assert_alike(score_rows(model, rows, pad_token_id=0), score_encoded(model, rows, pad_token_id=0))
    handle.remove()
    refusing = tiny_model()
    refusing.forward = lambda input_ids, attention_mask, use_cache: None  # type: ignore[assignment, method-assign]
    assert not reads_trees(refusing, rows, 0)
    model.config._attn_implementation = "flash_attention_2"
    assert not fits_trees(model, rows)


def test_a_model_of_nan_gives_nan() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert np.isnan(score_rows(model, answers(), pad_token_id=0).mean_logps()).all()


def test_the_pack_size_affects_only_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_model(), answers()
    whole = score_rows(model, rows, pad_token_id=0)
    monkeypatch.setattr(scoring, "pack_rows", lambda rows, chosen: shared_prefix.pack_rows(rows, chosen, 24))
    assert_alike(score_rows(model, rows, pad_token_id=0), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_layers_carry_a_state_reads_no_trees(dtype: torch.dtype) -> None:
    """A convolution would run from branch to branch of the tree, in bf16 by hardly more than rounding."""
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    shape = {**sizes, "num_key_value_heads": 2, "num_hidden_layers": 2}
    row = Encoded("a", (1, 2, 3), 1)
    for kinds, allowed in ((["full_attention", "full_attention"], True), (["conv", "full_attention"], False)):
        config = Lfm2Config(**shape, layer_types=kinds)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
        assert fits_trees(model, [row]) is allowed
