"""Test sampling: the distribution, and random numbers that depend on the prompt and not on its batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_examples import Rank, tiny_model
from test_generate import make_prompts

from llm_forget.errors import DataError, RecipeError
from llm_forget.evaluation.sets import SamplingConfig
from llm_forget.model.generate import draw_tokens, generate_answers, sample_answers
from llm_forget.testing import tiny_tokenizer
from llm_forget.utils.build import build


def sampled(prompts, model=None, **changes) -> list[list[str]]:
    settings = {"samples": 3, "max_new_tokens": 6, "batch_size": 4, "seed": 5, **changes}
    return sample_answers(model or tiny_model(), tiny_tokenizer(), prompts, **settings)


def test_inverse_cdf_by_hand() -> None:
    """For probabilities ½, 0, ½, 0, [0, ½) is token 0 and [½, 1) is token 2; tokens of probability 0 are never drawn."""
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]]).repeat(5, 1)
    numbers = torch.tensor([0.0, 0.49, 0.5, 0.51, 1 - 2**-53], dtype=torch.float64)
    assert draw_tokens(logits, numbers, 1.0).tolist() == [0, 0, 2, 2, 2]


def test_probabilities_are_the_softmax_at_the_temperature() -> None:
    """At temperature ½, logits 0, ln 2 give probabilities 1/5, 4/5."""
    numbers = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    logits = torch.tensor([[0.0, float(np.log(2))]]).repeat(10_000, 1)
    assert draw_tokens(logits, numbers, 0.5).float().mean().item() == pytest.approx(0.8, abs=1e-3)
    assert draw_tokens(logits, numbers, 1.0).float().mean().item() == pytest.approx(2 / 3, abs=1e-3)


def test_first_tokens_follow_the_model() -> None:
    """In 4,000 samples, the share of one token is within four standard errors of the model's probability."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = (10, 20, 30)
    with torch.no_grad():
        chances = model.eval()(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    # a token whose text can be recognised after decoding
    likely = [int(token) for token in chances.topk(20).indices if len(tokenizer.decode([token]).strip()) == 1][:3]
    said = sampled([prompt], model, samples=4000, max_new_tokens=1, batch_size=500)[0]
    for token in likely:
        chance = float(chances[token])
        text = tokenizer.decode([token]).strip()
        others = [one for one in range(len(chances)) if one != token and tokenizer.decode([one]).strip() == text]
        chance += float(chances[others].sum())
        found = said.count(text) / len(said)
        assert abs(found - chance) < 4 * (chance * (1 - chance) / len(said)) ** 0.5, (text, found, chance)


def test_samples_depend_only_on_the_prompt() -> None:
    """They do not depend on the batch, the other prompts or their order."""
    model = tiny_model()
    prompts = make_prompts(6, model.config.vocab_size)
    base = sampled(prompts, model)
    assert len({text for texts in base for text in texts}) > 10
    assert sampled(prompts, model, batch_size=1) == base
    assert sampled(prompts, model, batch_size=18) == base
    assert sampled(prompts[::-1], model) == base[::-1]
    assert sampled(prompts[2:4], model) == base[2:4]
    assert [texts[:2] for texts in base] == sampled(prompts, model, samples=2)
    assert sampled(prompts, model, seed=6) != base
    # the same prompt twice gives two different samples
    twice = sampled([prompts[0], prompts[0]], model)
    assert twice[0] == base[0]
    assert twice[1] != base[0]


def test_processes_share_the_work_and_get_the_same_samples() -> None:
    model = tiny_model()
    prompts = make_prompts(5, model.config.vocab_size)
    kept: list[torch.Tensor] = []

    class Accelerator(Rank):
        device = torch.device("cpu")

        def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            kept.append(tensor)
            return torch.stack(kept).sum(0)

    sampled(prompts, model, accelerator=Accelerator(2, 0))
    found = sampled(prompts, model, accelerator=Accelerator(2, 1))
    assert not torch.equal(kept[0], kept[1])
    assert found == sampled(prompts, model)


def test_a_low_temperature_is_greedy_and_the_random_state_is_not_changed() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = make_prompts(4, model.config.vocab_size)
    greedy = generate_answers(model, tokenizer, prompts, max_new_tokens=6, batch_size=4)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert sampled(prompts, model, temperature=1e-6, samples=2) == [[text, text] for text in greedy]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(DataError, match="temperature 0"):
        sampled([(1,)], temperature=0)
    with pytest.raises(DataError, match="samples is 0"):
        sampled([(1,)], samples=0)
    with pytest.raises(DataError, match="prompts are empty"):
        sampled([()])
    assert sampled([]) == []
    for values, message in (
        ({"temperature": 0.0}, "give a value above 0"),
        ({"k": [1, 65]}, "give each k from 1 up to samples"),
        ({"k": []}, "each k"),
        ({"threshold": 0}, "above 0 and at most 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            build(SamplingConfig, values, "sampling")
