"""Virtual neighbours: the forget questions about other names, with the answers that the model gives to them before training.

They stay in memory and are never written to a file, log or report, because they hold the questions of the forget set.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from llm_forget.data.encode import Encoded, EncodingConfig, encode_all, encode_prompt
from llm_forget.data.entities import Name, distinct_names, find_names, listed_names, swap, swap_text
from llm_forget.data.examples import Example
from llm_forget.errors import DataError
from llm_forget.model.generate import generate_answers
from llm_forget.model.weights import autocast_like

_SAME = 0.9  # share of equal words from which an answer counts as the forget answer
_TRIED, _NEAREST = 48, 12  # stand-ins that are looked at, and those of similar length of which one is drawn
_BEFORE, _AFTER = 48, 8  # words of a plain text before and after its name that make a question


def virtual_rows(
    forget: Sequence[Example],
    retain: Sequence[Example],
    model: Any,
    tokenizer: Any,
    encoding: EncodingConfig,
    *,
    seed: int,
    most: int,
    known_names: float,
    max_new_tokens: int,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda _: None,
) -> list[Encoded]:
    """Ask forget questions about other names, and encode the model's greedy answers.

    A question is left out if its answer is the forget answer: the model then recalls it from the wording alone, and keeping it
    would keep what is to be forgotten.

    Args:
        forget: the forget examples.
        retain: the retain examples, whose names are stand-ins too.
        model: the model before training.
        tokenizer: its tokenizer.
        encoding: the recipe's ``encoding`` section.
        seed: seed of the order and of the stand-ins.
        most: number of questions to ask.
        known_names: share of the stand-ins from the retain examples.
        max_new_tokens: longest answer.
        batch_size: questions that are answered at once.
        say: called with the number of rows.

    Returns:
        The rows in random order, each question about equally often.

    Raises:
        DataError: no forget row has a name, or every answer is the forget answer.
    """
    forget = list({example.id: example for example in forget}.values())
    found = find_names(forget, retain)
    named = [(example, name) for example, name in zip(forget, found, strict=True) if name is not None]
    if not named:
        raise DataError(
            f"virtual_neighbours found no name in the {len(forget)} forget rows; add a column `subject` with the name that each "
            "row is about, or leave the term out"
        )
    names = StandIns(
        {name.full for _, name in named}, distinct_names(retain, forget) if known_names else [], known_names, tokenizer
    )
    asked = _questions(named, names, random.Random(f"{seed} virtual neighbours"), most)
    prompts = [encode_prompt(tokenizer, question, encoding) for question, _ in asked]
    fits = [index for index, prompt in enumerate(prompts) if len(prompt) + 1 < encoding.max_length]
    answers = greedy_answers(model, tokenizer, [prompts[index] for index in fits], max_new_tokens, batch_size)
    rows = [
        (asked[index][0], answer)
        for index, answer in zip(fits, answers, strict=True)
        if answer and not _same(answer, asked[index][1])
    ]
    left_out = sum(map(bool, answers)) - len(rows)
    if not rows:
        raise DataError(
            f"the model gives the forget answer to all {len(asked)} forget questions about other names, so that there is nothing "
            "to protect; leave the retain term virtual_neighbours out"
        )
    say(
        f"virtual neighbours: {len(rows)} questions about other names, from {len(named)} of {len(forget)} forget rows"
        + (f"; {left_out} more get the forget answer and are left out" if left_out else "")
    )
    plain = replace(encoding, chunk=False, truncate=True)
    questions = [question for question, _ in rows]
    return encode_all(tokenizer, questions, plain, role="virtual", answers=[answer for _, answer in rows])[0]


class StandIns:
    """Draws names that stand in for the names of the forget rows.

    Args:
        taken: the names of the forget rows.
        known: names of the retain rows.
        share: the share of stand-ins that are drawn from these.
        tokenizer: counts tokens, because names of equal length leave the positions of a question as they are.
    """

    def __init__(self, taken: set[str], known: Sequence[str], share: float, tokenizer: Any) -> None:
        self._taken, self._share, self._tokenizer = taken, share, tokenizer
        self._known = [name for name in known if name not in taken]
        self._lengths: dict[str, int] = {}

    def draw(self, name: Name, order: random.Random) -> str:
        """A stand-in of about as many tokens as the name."""
        if self._known and order.random() < self._share:
            tried = order.sample(self._known, min(_TRIED, len(self._known)))
        else:
            tried = [self._listed(len(name.parts), order) for _ in range(_TRIED)]
        tried = [one for one in tried if one not in self._taken] or tried
        length = self._length(name.full)
        tried.sort(key=lambda one: abs(self._length(one) - length))
        return order.choice(tried[:_NEAREST])

    @staticmethod
    def _listed(words: int, order: random.Random) -> str:
        given, families = listed_names()
        if words < 2:
            return order.choice((*given, *families))
        return " ".join((order.choice(given), *order.sample(families, min(words, 4) - 1)))

    def _length(self, name: str) -> int:
        if name not in self._lengths:
            self._lengths[name] = len(self._tokenizer(f" {name}", add_special_tokens=False)["input_ids"])
        return self._lengths[name]


def _questions(
    named: Sequence[tuple[Example, Name]], names: StandIns, order: random.Random, most: int
) -> list[tuple[Example, str]]:
    """Different questions about stand-ins, each with the forget answer about the stand-in."""
    found: dict[Any, tuple[Example, str]] = {}
    for example, name in _repeated(named, order, 2 * most):
        stand_in = names.draw(name, order)
        question = _as_question(swap(example, name, stand_in), stand_in)
        if len(found) < most:
            found.setdefault(question.prompt, (question, swap_text(example.answer, name, stand_in)))
    return list(found.values())


def _repeated(
    named: Sequence[tuple[Example, Name]], order: random.Random, count: int
) -> Iterator[tuple[Example, Name]]:
    """``count`` rows, in permutations of all."""
    for start in range(0, count, len(named)):
        yield from order.sample(named, len(named))[: count - start]


def _as_question(example: Example, stand_in: str) -> Example:
    """The row itself, or for plain text a prompt that ends some words after the name."""
    if example.prompt:
        return example
    before, name, after = example.answer.partition(stand_in)
    words = " ".join([*before.split()[-_BEFORE:], name, *after.split()[:_AFTER]])
    return replace(example, prompt=words.strip())


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, batch_size: int = 32
) -> list[str]:
    """The model's greedy answers. The main process generates for all processes."""
    answers: list[Any] = [""] * len(prompts)
    if PartialState().is_main_process:
        with autocast_like(model):
            answers = list(
                generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
            )
    if PartialState().num_processes > 1:
        broadcast_object_list(answers, from_process=0)
    return answers


def _same(answer: str, forget_answer: str) -> bool:
    """Whether an answer has nearly the words of the forget answer."""
    ours, theirs = answer.casefold().split(), forget_answer.casefold().split()
    return difflib.SequenceMatcher(None, ours, theirs[: len(ours) + 2], autojunk=False).ratio() >= _SAME
