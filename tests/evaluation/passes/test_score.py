"""Scoring: one pass over batches gives what a row-by-row computation over full logits gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_examples import Rank, random_rows, tiny_model

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.passes import score
from llm_forget.evaluation.passes.score import score_encoded, vocabulary_scores
from llm_forget.evaluation.tokens import TokenScores

FIELDS = ("token_logps", "vocab_mean", "vocab_std")


def naive(model, rows: list[Encoded]) -> TokenScores:
    """Each row by itself, unpadded, all logits, in doubles."""
    model.eval()
    parts: list[list[float]] = [[], [], [], []]
    offsets = [0]
    for row in rows:
        with torch.no_grad():
            logps = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
        for place in range(max(row.prompt_length, 1), len(row.input_ids)):
            at, token = logps[place - 1], row.input_ids[place]
            mean = (at.exp() * at).sum()
            spread = (at.exp() * (at - mean) ** 2).sum().sqrt()
            for part, value in zip(parts, (at[token], at.argmax() == token, mean, spread), strict=True):
                part.append(float(value))
        offsets.append(len(parts[0]))
    arrays = [np.array(part) for part in parts]
    return TokenScores(arrays[0], arrays[1] > 0.5, arrays[2], arrays[3], np.array(offsets))


def test_equals_the_naive_computation() -> None:
    model = tiny_model()
    rows = random_rows(17, model.config.vocab_size)
    # rows that the model itself wrote, so that there are hits
    made = model.eval().generate(torch.tensor([[5, 6, 7]]), max_new_tokens=10, do_sample=False, eos_token_id=-1)
    rows.append(Encoded("hit", tuple(made[0].tolist()), 3))
    expected, found = naive(model, rows), score_encoded(model, rows, pad_token_id=0, batch_tokens=64)
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.hits.tolist() == expected.hits.tolist()
    assert found.row(17).hits.all()
    assert not found.hits.all()
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-5, err_msg=name)


def test_order_padding_batches_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    rows = random_rows(12, model.config.vocab_size, seed=1)
    base = score_encoded(model, rows, pad_token_id=0)
    order = [7, 3, 11, 0, 1, 10, 2, 9, 4, 8, 6, 5]
    shuffled = score_encoded(model, [rows[index] for index in order], pad_token_id=9, batch_tokens=30)
    monkeypatch.setattr(score, "_CHUNK_CPU", 3)
    chunked = score_encoded(model, rows, pad_token_id=0)
    for place, index in enumerate(order):
        for name in FIELDS:
            np.testing.assert_allclose(
                getattr(shuffled.row(place), name), getattr(base.row(index), name), atol=2e-5, err_msg=name
            )
    for name in FIELDS:
        np.testing.assert_allclose(getattr(chunked, name), getattr(base, name), atol=1e-5, err_msg=name)


def test_a_pad_token_inside_an_answer_is_scored() -> None:
    """With pad == eos a mask built from ids would hide the end token."""
    model = tiny_model()
    row = Encoded("a", (3, 4, 0, 5, 0), 1)
    longer = Encoded("b", tuple(range(1, 12)), 2)
    assert score_encoded(model, [row, longer], pad_token_id=0).lengths.tolist() == [4, 9]


def test_moments_of_a_worked_distribution() -> None:
    """For p = (¾, ¼): ¾ ln ¾ + ¼ ln ¼ = −0.562335; the values differ by ln 3, so std = √(¾·¼) ln 3 = 0.475714."""
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.75, 0.25]])) + 7
    logps, hits, mean, std = vocabulary_scores(logits, torch.tensor([0, 1]))
    assert logps.tolist() == pytest.approx([np.log(0.75), np.log(0.25)], abs=1e-6)
    assert hits.tolist() == [1, 0]
    assert mean.tolist() == pytest.approx([-0.562335] * 2, abs=1e-5)
    assert std.tolist() == pytest.approx([0.475714] * 2, abs=1e-5)


def test_forbidden_tokens_do_not_poison_the_moments() -> None:
    """A vocabulary entry at −∞ has p log p = 0; uniform over the other two: mean −ln 2, std 0."""
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    logps, _, mean, std = vocabulary_scores(logits, torch.tensor([2]))
    assert float(logps) == -np.inf
    assert float(mean) == pytest.approx(-np.log(2), abs=1e-6)
    assert float(std) == pytest.approx(0, abs=1e-3)


def test_a_surrounding_autocast_does_not_round_the_sums() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 97), torch.arange(5)
    expected = vocabulary_scores(logits, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vocabulary_scores(logits, targets), expected)


def test_training_mode_is_restored_module_by_module() -> None:
    model = tiny_model().train()
    model.model.layers[0].eval()
    rows = random_rows(4, model.config.vocab_size)
    first = score_encoded(model, rows, pad_token_id=0)
    second = score_encoded(model, rows, pad_token_id=0)
    np.testing.assert_array_equal(first.token_logps, second.token_logps)  # dropout was off
    assert model.training
    assert model.model.layers[1].self_attn.training
    assert not model.model.layers[0].self_attn.training
    # and what it left behind can still be trained through
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()


def test_rows_without_a_scored_token_give_nan_and_keep_their_place() -> None:
    model = tiny_model()
    rows = [Encoded("empty", (4,), 0), *random_rows(2, model.config.vocab_size), Encoded("empty", (4,), 1)]
    found = score_encoded(model, rows, pad_token_id=0)
    assert np.isnan(found.mean_logps()).tolist() == [True, False, False, True]
    assert len(score_encoded(model, [], pad_token_id=0)) == 0


def test_a_broken_model_gives_nan_and_not_zero() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    found = score_encoded(model, random_rows(3, model.config.vocab_size), pad_token_id=0)
    assert np.isnan(found.mean_logps()).all()


def test_bf16_scores_are_computed_in_fp32() -> None:
    model = tiny_model().to(torch.bfloat16)
    rows = random_rows(5, model.config.vocab_size)
    found, exact = score_encoded(model, rows, pad_token_id=0), naive(model, rows)
    np.testing.assert_allclose(found.token_logps, exact.token_logps, atol=0.15)
    assert not np.array_equal(found.token_logps, torch.tensor(found.token_logps).bfloat16().double().numpy())


def test_two_processes_give_what_one_gives() -> None:
    """Each rank scores its share, and the sum over ranks is the whole: played through here without a launch."""
    model = tiny_model()
    rows = random_rows(9, model.config.vocab_size, seed=3)
    whole = score_encoded(model, rows, pad_token_id=0, batch_tokens=40)
    kept: list[torch.Tensor] = []

    class Accelerator(Rank):
        device = torch.device("cpu")

        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            assert reduction == "sum"
            kept.append(tensor)
            return torch.stack(kept).sum(0)

    score_encoded(model, rows, pad_token_id=0, batch_tokens=40, accelerator=Accelerator(2, 0))
    found = score_encoded(model, rows, pad_token_id=0, batch_tokens=40, accelerator=Accelerator(2, 1))
    assert not torch.equal(kept[0], kept[1])
    np.testing.assert_array_equal(found.token_logps, whole.token_logps)
    np.testing.assert_array_equal(found.hits, whole.hits)
