"""Ask a model one question in its recipe's prompt format."""

from __future__ import annotations

from typing import Any

from llm_forget.data.encode import EncodingConfig, encode_prompt
from llm_forget.data.examples import Example, Message
from llm_forget.model.generate import generate_answers


def ask(model: Any, tokenizer: Any, question: str, encoding: EncodingConfig, *, max_new_tokens: int = 64) -> str:
    """Generate the model's greedy answer to a question.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        question: one user turn.
        encoding: system prompt and template, as in the recipe.
        max_new_tokens: the longest answer, in tokens.
    """
    example = Example(id="question", prompt=(Message("user", question),), answer="-")
    prompt = encode_prompt(tokenizer, example, encoding)
    return generate_answers(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, batch_size=1)[0].strip()
