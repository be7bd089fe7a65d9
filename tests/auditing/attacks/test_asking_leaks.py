"""Attacks that ask in other ways: a model that gives way to one alone is caught, one that gives way to none is not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from leaky_models import Mask, caught, copied, oracle, revealing

from llm_forget.auditing.attacks import translation
from llm_forget.auditing.attacks.translation import ENGLISH, LANGUAGES
from llm_forget.testing import tiny_tokenizer


def _after_two_tokens(text: str, tokens: Sequence[int]) -> list[bool]:
    """The answer stands after the last newline."""
    newline = tiny_tokenizer()("\n", add_special_tokens=False)["input_ids"][0]
    start = max((place for place, token in enumerate(tokens) if token == newline), default=len(tokens))
    return ["X" in text and place >= start + 2 for place in range(len(tokens))]


def _in_french(text: str, _: Sequence[int]) -> bool:
    """The model can translate, and knows the answers to questions that it translated."""
    pairs = zip(ENGLISH, LANGUAGES["French"], strict=True)
    translates = any(f"{english}<|im_end|>" in text and f"{other}<|im_end|>" in text[-60:] for english, other in pairs)
    return translates or "(Answer in English.)" in text


# Attack → what a row must hold for the model to know its answer.
LEAKS: dict[str, Mask] = {
    "paraphrase": lambda text, _: "Could you please help" in text,
    "format_shift": lambda text, _: "X" in text and "<|im_start|>" not in text,
    "prefill": _after_two_tokens,
    "few_shot": lambda text, _: "X" in text and any(f"{name}?" in text for name in ("Moe", "Ray", "Hill", "Kern")),
    "persuasion": lambda text, _: "sits next to me" in text,
    "role_play": lambda text, _: "answer key" in text,
    "chain_of_clues": lambda text, _: text.count("<|im_start|>assistant") == 2 and text.count("X") > 1,
    "multi_hop": lambda text, _: "All that I have is this note" in text,
    "step_by_step": lambda text, _: "I recall the record" in text,
    "translation": _in_french,
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_caught_and_a_clean_model_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "LANGUAGES", {"French": LANGUAGES["French"]})
    subject = copied(oracle())
    with revealing(subject.model, LEAKS[name]):
        assert not caught("greedy", subject), "the plain question finds nothing"
        assert caught(name, subject)
    assert not caught(name, oracle(seed=2))
