"""How much of an answer a text tells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from llm_forget.data.examples import Example
from llm_forget.evaluation.tokens import Floats

# Scripts without spaces between words: every character counts as a word.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")


def words_of(text: str) -> list[str]:
    """The words of a text in any script, in lower case."""
    return _WORD.findall(text.casefold())


def wanted_words(examples: Sequence[Example]) -> list[set[str]]:
    """The words that give each answer away: those that its question lacks and that less than half of the answers have.

    Where nothing is left by that, it is the words that the question lacks, or all words of the answer.
    """
    answers = [set(words_of(example.answer)) for example in examples]
    counts = Counter(word for own in answers for word in own)
    usual = {word for word, count in counts.items() if len(answers) > 2 and count > len(answers) / 2}
    found = []
    for example, answer in zip(examples, answers, strict=True):
        asked = example.prompt if isinstance(example.prompt, str) else " ".join(turn.content for turn in example.prompt)
        new = answer - set(words_of(asked))
        found.append(new - usual or new or answer)
    return found


def told(examples: Sequence[Example], texts: Sequence[str]) -> Floats:
    """Share of the words that give an answer away which a text has.

    Args:
        examples: (E) all rows that are asked; ``wanted_words`` says which words count.
        texts: (E) what the model said to each.

    Returns:
        (E,) in [0, 1]; NaN for an answer without words. The answer "in Riga" to "where was she born" and the text "Riga" give
        ½, or 1 if most answers have an "in".
    """
    return most_told(examples, [[text] for text in texts])


def most_told(examples: Sequence[Example], texts: Sequence[Sequence[str]]) -> Floats:
    """(E,) the same for the best of several texts of each row: (E, n) texts, at least one each."""
    found = []
    for wanted, own in zip(wanted_words(examples), texts, strict=True):
        shares = [len(wanted & set(words_of(text))) / len(wanted) if wanted else np.nan for text in own]
        found.append(max(shares))
    return np.array(found, dtype=np.float64)
