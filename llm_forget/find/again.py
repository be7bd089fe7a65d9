"""Search again after unlearning: do the model's answers still lead to the rows that were to be forgotten?

The model is asked the question of each forget row, and the rows that its answer leads to are searched for by the answer alone,
without the question and the name in it. Chance is measured with the same questions about names that nobody has: an answer that
still leads to its row as seldom as theirs shows no more than a guess.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm_forget.data.encode import encode_prompt
from llm_forget.data.entities import Name, find_names, swap, swap_text
from llm_forget.data.examples import Example
from llm_forget.errors import UserError
from llm_forget.find.corpus import Corpus
from llm_forget.find.search import Model, find_rows
from llm_forget.model.generate import generate_answers
from llm_forget.train.virtual import StandIns

_BATCH = 16
_MOST_TOKENS = 64  # of an answer
ABOVE_CHANCE = 0.05


@dataclass(frozen=True)
class Again:
    """How many answers lead to the row of their question.

    Attributes:
        asked: number of forget rows whose question was asked.
        before: of the answers before unlearning, how many lead to their row; None if that model was not asked.
        after: the same after unlearning.
        chance: the same for the questions about names that nobody has, after unlearning: the mean over the names.
        names: how many such names each question was asked about.
        p_value: of a permutation test. The probability of ``after`` or more if the real name is like the others.
        unnamed: forget rows that were not asked, because their question has no name that could be exchanged.
    """

    asked: int
    before: int | None
    after: int
    chance: float
    names: int
    p_value: float
    unnamed: int = 0

    @property
    def above_chance(self) -> bool:
        """Whether the answers lead to their rows more often than answers about names that nobody has."""
        return self.p_value < ABOVE_CHANCE

    @property
    def needed(self) -> int:
        """The fewest answers that are above chance if none about other names leads to a row."""
        return next(count for count in range(1, 1000) if (1 + self.names) ** -count < ABOVE_CHANCE)

    def as_dict(self) -> dict[str, Any]:
        """The result for JSON. It holds no text."""
        return {**asdict(self), "above_chance": self.above_chance}

    def sentences(self) -> Iterator[str]:
        """The result in words."""
        before = "" if self.before is None else f"{self.before} of {self.asked} answers led to their row before, and "
        yield f"{before}{self.after} of {self.asked} after unlearning"
        yield f"about {self.names} names that nobody has: {self.chance:.1f} of {self.asked} (chance)"
        if self.above_chance:
            yield f"above chance: the model still knows some of these rows (p = {self.p_value:.3g})"
        elif self.asked < self.needed:
            yield f"cannot tell: at least {self.needed} rows with a name in their question are needed"
        else:
            yield f"nothing above chance (p = {self.p_value:.2f}; from {self.needed} on it would be, with none by chance)"
        if self.before is not None and self.before < self.needed:
            yield "the answers before unlearning hardly led to their rows, so this search could not show that they are forgotten"


def search_again(
    corpus: Corpus,
    forget: Sequence[Example],
    rows: Sequence[int],
    model: Model,
    *,
    before: Callable[[], Any] | None = None,
    most: int = 32,
    names: int = 3,
    seed: int = 0,
) -> Again:
    """Ask the questions of the forget rows, and search by the answers.

    Args:
        corpus: the forget rows and the rows that stay.
        forget: the forget rows.
        rows: their numbers in the corpus, in the same order.
        model: the model after unlearning.
        before: context in which ``model.model`` answers as before unlearning; None not to ask it.
        most: ask about this many rows, drawn at random.
        names: names that nobody has, for each row.
        seed: of the rows and names.

    Raises:
        UserError: no question has a name.
    """
    order = random.Random(seed)
    found = find_names(forget)
    named = [
        (example, row, name) for example, row, name in zip(forget, rows, found, strict=True) if name and example.prompt
    ]
    if not named:
        raise UserError(
            "no forget row has a question with a name, so chance cannot be measured by asking about other names; add a column "
            "`subject` with the name that each row is about"
        )
    drawn = order.sample(named, min(most, len(named)))
    drawn.sort(key=lambda one: one[1])
    others = StandIns({name.full for _, _, name in named}, [], 0.0, model.tokenizer)
    asked = [[_stripped(example, name)] for example, _, name in drawn]
    for (example, _, name), questions in zip(drawn, asked, strict=True):
        for _ in range(names):
            stand_in = others.draw(name, order)
            questions.append((swap(example, name, stand_in), _remover(stand_in)))
    after = _leads(corpus, model, [(row, questions) for (_, row, _), questions in zip(drawn, asked, strict=True)])
    once = None
    if before is not None:
        with before():
            once = _leads(corpus, model, [(row, one[:1]) for (_, row, _), one in zip(drawn, asked, strict=True)])
    return Again(
        asked=len(drawn),
        before=None if once is None else int(once.sum()),
        after=int(after[:, 0].sum()),
        chance=float(after[:, 1:].sum() / names),
        names=names,
        p_value=at_least(int(after[:, 0].sum()), after.mean(axis=1)),
        unnamed=len(forget) - len(named),
    )


def at_least(count: int, chances: Any) -> float:
    """The probability that ``count`` or more of independent events happen.

    Args:
        count: how many.
        chances: (N,) the probability of each.
    """
    spread = np.ones(1)  # the probability of 0, 1, … events so far
    for chance in chances:
        spread = np.convolve(spread, [1 - chance, chance])
    return float(min(1.0, spread[count:].sum()))


Question = tuple[Example, Callable[[str], str]]


def _stripped(example: Example, name: Name) -> Question:
    return example, lambda answer: swap_text(answer, name, "it")


def _remover(stand_in: str) -> Callable[[str], str]:
    name = Name(stand_in, tuple(stand_in.split()))
    return lambda answer: swap_text(answer, name, "it")


def _leads(corpus: Corpus, model: Model, asked: Sequence[tuple[int, Sequence[Question]]]) -> Any:
    """(rows, questions of each) whether the answer leads to the row."""
    prompts = [
        encode_prompt(model.tokenizer, question, model.encoding) for _, questions in asked for question, _ in questions
    ]
    answers = iter(
        generate_answers(model.model, model.tokenizer, prompts, max_new_tokens=_MOST_TOKENS, batch_size=_BATCH)
    )
    known: dict[str, set[int]] = {}

    def leads(row: int, answer: str) -> bool:
        if not any(one.isalnum() for one in answer):
            return False
        if answer not in known:
            known[answer] = {hit.row for hit in find_rows(corpus, answer=answer).kept()}
        return row in known[answer]

    return np.array([[leads(row, without(next(answers))) for _, without in questions] for row, questions in asked])
