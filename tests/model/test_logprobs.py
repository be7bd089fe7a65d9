"""Test scores of answer tokens against the plain computation over all positions, and the removal of the hook on the head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_forget.config import AdapterConfig, TrainConfig
from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.model.blocks import add_adapter
from llm_forget.model.head import HeadUse, chunk_rows, head_use, output_head
from llm_forget.model.logprobs import answer_logits, left_align, scatter_rows, score_answers
from llm_forget.scores import AnswerScores, TopLogps
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.plugins import find_class, names_in

ROWS = [
    Encoded("a", (5, 9, 3, 8, 8, 1), 2),
    Encoded("b", (7, 2), 1),
    Encoded("c", (4, 4, 6, 1, 2, 3, 4, 5, 1), 6),
]


class Wrapper(nn.Module):
    """Wrapper like DDP: the model is `.module`, and its methods are not visible from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **more: Any) -> Any:
        return self.module(*args, **more)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model(tiny_tokenizer(), seed=3)


def adapted(model: nn.Module) -> nn.Module:
    """Return the model with an adapter that has an effect; a new adapter has B = 0."""
    peft = add_adapter(copy.deepcopy(model), AdapterConfig(rank=2, alpha=2))
    torch.manual_seed(0)
    for name, value in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    return peft.eval()


def naive(model: nn.Module, row: Encoded) -> tuple[Tensor, Tensor]:
    """Return log-probs and logits of one answer, alone and without padding, from the logits of all positions."""
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids).logits[0, :-1].float()
    places = range(row.prompt_length - 1, len(row.input_ids) - 1)
    logps = logits.log_softmax(-1)
    return torch.stack([logps[place, row.input_ids[place + 1]] for place in places]), logits[list(places)]


@pytest.mark.parametrize("kind", ["bare", "adapter", "wrapped", "wrapped adapter"])
@torch.no_grad()
def test_equals_the_plain_computation(model: nn.Module, kind: str) -> None:
    inner = adapted(model) if "adapter" in kind else model
    scores = score_answers(Wrapper(inner) if "wrapped" in kind else inner, collate(ROWS, 0), keep_logits=True)
    assert scores.mask.tolist() == [[True] * 4, [True] + [False] * 3, [True] * 3 + [False]]
    assert scores.lengths.tolist() == [4, 1, 3]
    assert scores.logits is not None
    for index, row in enumerate(ROWS):
        logps, logits = naive(inner, row)
        size = len(logps)
        torch.testing.assert_close(scores.token_logps[index, :size], logps, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(scores.logits[index, :size], logits, rtol=1e-5, atol=1e-5)
        assert scores.tokens[index, :size].tolist() == list(row.input_ids[row.prompt_length :])
        assert not scores.token_logps[index, size:].any()
        assert not scores.tokens[index, size:].any()
        assert not scores.logits[index, size:].any()
        assert float(scores.logps[index]) == pytest.approx(float(logps.sum()), rel=1e-4)
        assert float(scores.mean_logps[index]) == pytest.approx(float(logps.mean()), rel=1e-4)
    if "adapter" in kind:
        assert (scores.token_logps - score_answers(model, collate(ROWS, 0)).token_logps).abs().max() > 1e-2


def test_gradient_equals_that_of_the_plain_computation(model: nn.Module) -> None:
    gradients = []
    for plain in (True, False):
        copied = copy.deepcopy(model)
        means = (
            torch.stack([naive(copied, row)[0].mean() for row in ROWS])
            if plain
            else score_answers(copied, collate(ROWS, 0)).mean_logps
        )
        means.sum().backward()
        gradients.append(torch.cat([value.grad.flatten() for value in copied.parameters()]))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_the_head_reads_only_answer_positions_and_is_restored(model: nn.Module) -> None:
    seen: list[tuple[int, ...]] = []
    handle = output_head(model).register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    try:
        score_answers(model, collate(ROWS, 0))
    finally:
        handle.remove()
    assert seen == [(4 + 1 + 3, model.config.vocab_size)]
    assert not output_head(model)._forward_pre_hooks
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape[:2] == (1, 3)


def test_the_hook_is_removed_after_an_exception(model: nn.Module) -> None:
    batch = collate(ROWS, 0)
    with pytest.raises(IndexError):
        answer_logits(model, {**batch, "input_ids": batch["input_ids"] + 10**6})
    assert not output_head(model)._forward_pre_hooks
    with pytest.raises((IndexError, RuntimeError)):
        answer_logits(model, {**batch, "answer_mask": batch["answer_mask"][:, :-1]})
    assert not output_head(model)._forward_pre_hooks


def test_the_first_token_of_a_sequence_is_never_scored(model: nn.Module) -> None:
    batch = collate(ROWS, 0)
    everything = {**batch, "answer_mask": batch["attention_mask"].bool()}
    assert score_answers(model, everything).mask.sum(-1).tolist() == [len(row.input_ids) - 1 for row in ROWS]
    assert everything["answer_mask"][:, 0].all(), "and the batch itself is left alone"


def test_nothing_to_score(model: nn.Module) -> None:
    batch = collate(ROWS, 0)
    scores = score_answers(model, {**batch, "answer_mask": torch.zeros_like(batch["answer_mask"])}, keep_logits=True)
    assert scores.logps.tolist() == scores.mean_logps.tolist() == [0.0, 0.0, 0.0]
    assert scores.token_logps.shape == (3, 1)


def test_a_model_without_a_head_is_refused() -> None:
    inner = tiny_model(tiny_tokenizer()).model
    with pytest.raises((TypeError, AttributeError)):
        score_answers(inner, collate(ROWS, 0))


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
@settings(deadline=None)
def test_rows_are_left_aligned_and_in_order(given_mask: list[list[bool]]) -> None:
    positions = torch.tensor(given_mask)
    mask = left_align(positions)
    assert mask.shape == (len(given_mask), max(1, *(sum(row) for row in given_mask)))
    flat = torch.arange(1.0, int(positions.sum()) + 1).requires_grad_()
    laid = scatter_rows(flat, mask)
    numbers = iter(range(1, 99))
    for row, places in zip(laid.tolist(), given_mask, strict=True):
        assert row == [float(next(numbers)) for _ in range(sum(places))] + [0.0] * (mask.shape[1] - sum(places))
    if len(flat):
        (laid * torch.arange(1.0, laid.numel() + 1).view_as(laid)).sum().backward()
        expected = torch.arange(1.0, laid.numel() + 1).view_as(laid)[mask]
        assert flat.grad.tolist() == expected.tolist()
    vectors = scatter_rows(torch.stack([flat.detach(), -flat.detach()], -1), mask)
    assert torch.equal(vectors[..., 0], laid.detach())
    assert torch.equal(vectors[..., 1], -laid.detach())


def test_rows_selects_examples_with_all_their_tensors() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    other = AnswerScores(torch.rand(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.long))
    full = AnswerScores(
        torch.rand(2, 2),
        mask,
        mask.long(),
        torch.rand(2, 2, 3),
        torch.tensor([7.0, 8.0]),
        torch.rand(2, 2, 3),
        torch.rand(2, 2, 5),
        torch.rand(2, 2, 5),
        other,
        torch.ones(2, 4, dtype=torch.long),
        TopLogps(torch.ones(2, 2, 3, dtype=torch.long), torch.rand(2, 2, 3)),
        TopLogps(torch.zeros(2, 2, 3, dtype=torch.long), torch.rand(2, 2, 3)),
        row_targets=torch.tensor([-3.0, -4.0]),
        swapped_top=TopLogps(torch.ones(2, 2, 3, dtype=torch.long), torch.rand(2, 2, 3)),
        novel=mask,
    )
    assert None not in vars(full).values()
    for index in (slice(1, 2), torch.tensor([1])):
        one = full.rows(index)
        for name, value in vars(full).items():
            if isinstance(value, TopLogps):
                assert torch.equal(getattr(one, name).tokens, value.tokens[1:2])
                assert torch.equal(getattr(one, name).logps, value.logps[1:2])
            elif name != "alternative":
                assert torch.equal(getattr(one, name), value[1:2])
        assert one.alternative is not None
        assert torch.equal(one.alternative.token_logps, other.token_logps[1:2])
    assert AnswerScores(torch.rand(2, 2), mask, mask.long()).rows(slice(1)).logits is None


def _method_and_retain() -> list[tuple[str, str | None]]:
    methods = names_in("llm_forget.methods")
    own = [(name, find_class("llm_forget.methods", name, "forget_loss").default_retain) for name in methods]  # type: ignore[attr-defined]
    return [*own, ("npo", "kl"), ("undial", "kl"), ("grad_ascent", "activation")]


@pytest.mark.parametrize(("method", "retain"), _method_and_retain())
def test_forward_passes_in_one_step(model: nn.Module, method: str, retain: str | None) -> None:
    """Forget, alternative and retain rows share one forward pass; the reference sees only the rows that need it."""
    from llm_forget.train.arguments import unlearning_arguments
    from llm_forget.train.batches import PairDataset
    from llm_forget.train.objective import Objective, References
    from llm_forget.train.teacher import novel_tokens, teacher_of
    from llm_forget.train.trainer import UnlearningTrainer

    policy = add_adapter(copy.deepcopy(model), AdapterConfig(rank=2, alpha=2))
    widths: list[int] = []
    head_use(policy)
    policy.get_base_model().model.register_forward_hook(lambda _, args, out: widths.append(len(out[0])))
    top, _ = teacher_of(model, ROWS, 0, top=4)
    widths.clear()
    goal = Objective(
        find_class("llm_forget.methods", method, "forget_loss")(),
        None if retain is None else find_class("llm_forget.retain", retain, "retain_loss")(),
    )
    needs = [part.needs for part in (goal.method, goal.retain) if part is not None]
    forget_needs = needs[0]
    trainer = UnlearningTrainer(
        policy,
        replace(unlearning_arguments(TrainConfig(batch_size=3, gradient_accumulation=2), 0, True), use_cpu=True),
        PairDataset(
            ROWS,
            ROWS,
            [(index % 3, None if retain is None else index % 3) for index in range(6)],
            ROWS[::-1] if forget_needs.any_alternative else None,
        ),
        goal,
        pad_token_id=0,
        reference=References(
            torch.zeros(3), torch.zeros(3), None, top, top, torch.zeros(3), top, novel_tokens(ROWS, [])
        ),
    )
    trainer.train()
    assert trainer.state.global_step == 1
    policy_rows = 3 * (1 + forget_needs.alternative + (retain is not None))
    reference_rows = [3 for one in needs if one.reference_forward]
    assert widths == [policy_rows, *reference_rows] * 2  # two micro-batches


@pytest.mark.parametrize("kind", ["bare", "adapter", "wrapped"])
@pytest.mark.parametrize("rows_at_once", [1, 3])
def test_in_chunks_the_scores_and_gradients_are_the_same(
    model: nn.Module, kind: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 answer tokens in chunks of 1 or 3 agree to 1e-6, and at most one chunk of logits exists at once."""
    found = []
    start = adapted(model) if kind == "adapter" else model
    for chunked in (False, True):
        inner = copy.deepcopy(start).train()
        assert head_use(inner) is HeadUse.CHUNKS
        seen: list[int] = []
        project = output_head(inner).forward

        def watch(hidden: Tensor, project: Any = project, seen: list[int] = seen) -> Tensor:
            seen.append(len(hidden))
            return project(hidden)

        with monkeypatch.context() as patch:
            patch.setattr(output_head(inner), "forward", watch)
            if chunked:
                patch.setattr("llm_forget.model.head.CHUNK_BYTES", 4 * inner.config.vocab_size * rows_at_once)
            scores = score_answers(Wrapper(inner) if kind == "wrapped" else inner, collate(ROWS, 0))
            (scores.mean_logps * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
            assert output_head(inner).forward is watch, "the head is left as it was"
        assert max(seen) == (rows_at_once if chunked else 8)
        twice = chunked and kind != "adapter"
        assert sum(seen) == (16 if twice else 8), (
            "a trained head works a chunk out again for its gradient, a frozen one does not"
        )
        gradients = [value.grad.flatten() for value in inner.parameters() if value.grad is not None]
        found.append((scores.token_logps.detach(), torch.cat(gradients)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=5e-6)


def test_the_size_of_a_chunk(model: nn.Module) -> None:
    vocabulary = model.config.vocab_size
    fit = (1 << 28) // (4 * vocabulary)
    assert chunk_rows(model, fit) is None
    assert chunk_rows(model, fit + 1) == -(-(fit + 1) // 2)
    frozen = copy.deepcopy(model).requires_grad_(False)
    small = (1 << 25) // (4 * vocabulary)
    assert chunk_rows(frozen, small) is None
    assert chunk_rows(frozen, small + 1) == -(-(small + 1) // 2), (
        "chunks under a frozen head cost no work: smaller ones on a CPU"
    )
    assert chunk_rows(frozen, fit, on_cpu=False) is None, "a card's are as large as those of a head that is trained"


class Changed(nn.Module):
    """A language model with a wrapper's forward that changes the logits of the inner model."""

    def __init__(self, inner: Any, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.config, self.change = inner, inner.config, change

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        output.logits = self.change(output.logits)
        return output


CHANGES: dict[str, tuple[HeadUse, Callable[[Tensor], Tensor]]] = {
    "none": (HeadUse.CHUNKS, lambda logits: logits),
    "a cast": (HeadUse.CHUNKS, lambda logits: logits.double()),
    "a soft cap": (HeadUse.POSITIONS, lambda logits: 30 * torch.tanh(logits / 30)),
    "a scale": (HeadUse.POSITIONS, lambda logits: logits / 8),
    "a bias": (HeadUse.POSITIONS, lambda logits: logits + torch.arange(logits.shape[-1]) / 100),
    "one token masked": (HeadUse.POSITIONS, lambda logits: logits.index_fill(-1, torch.tensor([7]), -1e4)),
    "relative to the first position": (HeadUse.WHOLE, lambda logits: logits - logits[:, :1].tanh()),
    "batches only": (HeadUse.WHOLE, lambda logits: logits.transpose(1, 2).contiguous().transpose(1, 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_logits_that_the_model_changes_after_the_head(
    model: nn.Module, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 3 rows must not be used where the model changes its logits; scores and gradients are those of whole logits."""
    expected_use, function = CHANGES[change]
    changed = Changed(copy.deepcopy(model), function)
    for value in changed.parameters():
        value.data *= 2  # larger logits, which a cap changes
    means = torch.stack([naive(changed, row)[0].mean() for row in ROWS])
    expected = torch.cat([one.flatten() for one in torch.autograd.grad(means.sum(), list(changed.parameters()))])
    monkeypatch.setattr("llm_forget.model.head.CHUNK_BYTES", 4 * model.config.vocab_size * 3)
    scores = score_answers(changed, collate(ROWS, 0))
    torch.testing.assert_close(scores.mean_logps, means, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(scores.mean_logps.sum(), list(changed.parameters()))
    torch.testing.assert_close(torch.cat([one.flatten() for one in found]), expected, rtol=1e-4, atol=1e-5)
    assert head_use(changed) is expected_use
    with FakeTensorMode(allow_non_fake_inputs=True):
        planned = Changed(tiny_model(tiny_tokenizer()), function)
        planned_use = head_use(planned)
    assert (planned_use is HeadUse.CHUNKS) == (change == "none"), "the memory plan has no numbers to compare"


def test_a_chunk_is_recomputed_with_the_same_dropout(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is that of the loss that was computed, for a trained head with LoRA dropout."""
    base: Any = copy.deepcopy(model)
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())  # no longer tied to the embeddings
    base.config.tie_word_embeddings = False
    policy = add_adapter(base, AdapterConfig(rank=2, alpha=2, target_modules=["lm_head"], dropout=0.5))
    for name, value in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    policy.train()
    monkeypatch.setattr("llm_forget.model.head.CHUNK_BYTES", 4 * model.config.vocab_size * 3)
    gradients = []
    for recomputed in (True, False):
        if not recomputed:
            monkeypatch.setattr("llm_forget.model.head.checkpoint", lambda run, *args, **_: run(*args))
        torch.manual_seed(5)
        trained = [value for value in policy.parameters() if value.requires_grad]
        found = torch.autograd.grad(score_answers(policy, collate(ROWS, 0)).mean_logps.sum(), trained)
        gradients.append(torch.cat([one.flatten() for one in found]))
    assert gradients[1].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
