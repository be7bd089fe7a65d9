"""Attacks that look inside or change the model: what is hidden behind a barrier that they pass is caught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from audited import subject_of
from leaky_models import caught, copied, encoded, hiding, oracle, people, target

from llm_forget.auditing.subject import LoadedSubject
from llm_forget.data.encode import Encoded
from llm_forget.testing import memorise, tiny_tokenizer

# The block whose output is pushed away, and whether any change of weights or states opens the barrier.
BARRIERS = {
    "logit_lens": (-1, False),
    "steering": (0, False),
    "activation_noise": (-1, True),
    "prune": (-1, True),
    "relearn_forget": (-1, True),
    "relearn_related": (-1, True),
    "relearn_minimal": (-1, True),
    "relearn_unrelated": (-1, True),
}


@pytest.mark.parametrize("name", BARRIERS)
def test_knowledge_behind_a_barrier_is_caught(name: str) -> None:
    after, fragile = BARRIERS[name]
    subject, clean = copied(target()), copied(oracle())
    with hiding(subject.model, after=after, fragile=fragile), hiding(clean.model, after=after, fragile=fragile):
        assert not caught("greedy", subject), "the plain question finds nothing"
        assert caught(name, subject)
        assert not caught(name, clean)


def test_answers_at_the_bottom_are_caught() -> None:
    """A head with negated weights gives the right answer the least likely tokens."""
    subject = copied(target())
    subject.model.lm_head.weight = torch.nn.Parameter(-subject.model.lm_head.weight.detach(), requires_grad=False)
    assert not caught("greedy", subject)
    assert caught("inverse_greedy", subject)
    assert not caught("inverse_greedy", oracle(seed=2))


def test_knowledge_in_the_depth_is_caught() -> None:
    """Only the head is spoiled, so the target reads all answers from the hidden states."""
    subject, clean = copied(target()), copied(oracle(seed=2))
    for one in (subject, clean):
        one.model.lm_head.weight = torch.nn.Parameter(-one.model.lm_head.weight.detach(), requires_grad=False)
        one.before = lambda: target().model
    oracle().before = lambda: target().model
    assert not caught("greedy", subject)
    assert caught("depth", subject)
    assert not caught("depth", clean)


def _adapted(base: LoadedSubject, rows: Sequence[Encoded] = (), *, sign: float = 1.0) -> LoadedSubject:
    """The base with an adapter that was trained on rows, times ``sign``."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(copied(base).model, config)
    if rows:
        memorise(model, rows, steps=30)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data *= sign
    return subject_of(model, tiny_tokenizer(), "adapter_fp32")


def test_an_adapter_that_hides_is_caught() -> None:
    subject = _adapted(target(), encoded(people().forget, "Not known."))
    assert not caught("greedy", subject), "the adapter hides the answers"
    assert caught("adapter_off", subject)
    assert caught("merge_adapter", subject)
    clean = _adapted(oracle(seed=2))
    assert not any(caught(name, clean) for name in ("adapter_off", "merge_adapter", "scale_adapter"))


def test_an_adapter_that_knows_when_it_is_negated_is_caught() -> None:
    """The base does not know the answers, so switching the adapter off finds nothing."""
    subject = _adapted(oracle(), encoded(people().forget), sign=-1.0)
    assert not caught("greedy", subject)
    assert not caught("adapter_off", subject)
    assert caught("scale_adapter", subject)
