"""The world of the removal test: invented people, what a model is taught about them, and a small model to teach.

The model first learns to answer from rows about other people, and is then taught the rows whose effect is examined. Each fact
is taught by several rows. Its query has a wording that rows about other people have, but not these. In the case ``plain``,
few people share names or a value. In the case ``decoys``, names are combinations of a few given and a few family names, and
values are from short lists, so many rows about other people share more words with the query than the rows that taught its
fact.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded
from llm_forget.demo.people import KINDS, people
from llm_forget.demo.wordings import WORDINGS
from llm_forget.demo.words import CULTURES
from llm_forget.model.logprobs import score_answers

CASES = ("plain", "decoys")
SIDE = 4  # given names and family names of the case "decoys", and its values for each slot
PEOPLE = SIDE * SIDE
OTHERS = 25  # people from whom the model learned to answer, before it was taught the rows
FACTS = ("work", "pet", "education", "award")
WORDINGS_EACH = 5  # 4 of them are taught: 16 people × 4 facts × 4 = 256 rows, of which the top 1 % are 3
_PRONOUNS = {
    "f": {"She": "She", "she": "she", "Her": "Her", "her": "her", "him": "her"},
    "m": {"She": "He", "she": "he", "Her": "His", "her": "his", "him": "him"},
}


@dataclass(frozen=True)
class Row:
    """A taught row, or a query.

    Attributes:
        question: the question.
        answer: the answer.
        person: the number of the person.
        kind: the kind of fact.
    """

    question: str
    answer: str
    person: int
    kind: str

    @property
    def text(self) -> str:
        """Question and answer."""
        return f"{self.question} {self.answer}"


@dataclass(frozen=True)
class World:
    """What there is to learn.

    Attributes:
        before: rows about other people, from whom the model learns to answer.
        taught: the rows whose effect is examined, in random order.
        queries: one for each fact in ``taught``.
    """

    before: list[Row]
    taught: list[Row]
    queries: list[Row]


def make_world(case: str, seed: int) -> World:
    """Everything follows from the case, one of ``CASES``, and the seed."""
    draw = Random(f"{case}/{seed}")
    folk = people(PEOPLE + OTHERS, seed)
    names = [(person.name, person.gender) for person in folk]
    if case == "decoys":
        culture = CULTURES[seed % len(CULTURES)]
        given, families = draw.sample(culture.women, 2 * SIDE), draw.sample(culture.families, 2 * SIDE)
        pairs = [*product(given[:SIDE], families[:SIDE]), *product(given[SIDE:], families)]
        names = [(f"{first} {last}", "f") for first, last in pairs[: len(folk)]]
    before: list[Row] = []
    taught: list[Row] = []
    queries: list[Row] = []
    for kind in FACTS:
        facts = [person.facts[KINDS.index(kind)].values for person in folk]
        if case == "decoys":
            lists = [draw.sample(sorted(set(slot)), SIDE) for slot in zip(*facts, strict=True)]
            facts = [tuple(draw.choice(options) for options in lists) for _ in folk]
        for number, ((name, gender), values) in enumerate(zip(names, facts, strict=True)):
            words = {**_PRONOUNS[gender], "name": name, **dict(zip(WORDINGS[kind].slots, values, strict=True))}
            told = [
                Row(question.format_map(words), answer.format_map(words), number, kind)
                for question, answer in zip(WORDINGS[kind].questions, WORDINGS[kind].answers, strict=True)
            ]
            if number < PEOPLE:
                queries.append(told.pop(draw.randrange(WORDINGS_EACH)))
                taught += told
            else:
                before += told
    draw.shuffle(taught)
    return World(before, taught, queries)


def word_tokenizer(rows: Sequence[Row]) -> Any:
    """A tokenizer whose tokens are words and marks."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<unk>", "<end>"]
    tokenizer.train_from_iterator((row.text for row in rows), trainers.WordLevelTrainer(special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>")


def encoded(tokenizer: Any, rows: Sequence[Row]) -> list[Encoded]:
    """Question as prompt; answer and end token as answer."""
    made = []
    for number, row in enumerate(rows):
        prompt, answer = (tuple(tokenizer(text)["input_ids"]) for text in (row.question, row.answer))
        made.append(Encoded(str(number), (*prompt, *answer, tokenizer.eos_token_id), len(prompt)))
    return made


def new_model(tokenizer: Any, seed: int, *, hidden: int = 64) -> Any:
    """A small Llama with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
            dtype="float32",
        )
    )


def teach(
    model: Any,
    rows: Sequence[Encoded],
    seed: int,
    *,
    removed: Container[int] = (),
    epochs: int,
    learning_rate: float = 8e-3,
    batch_rows: int = 32,
) -> Any:
    """Train a model in place on all rows but the removed ones, and return it.

    Order and learning rates follow from the seed alone, so models of one seed differ only by the removed rows.

    Args:
        model: a causal language model.
        rows: all rows.
        seed: of the order.
        removed: indices of rows to leave out.
        epochs: passes over the rows.
        learning_rate: the highest; it rises for a tenth of the steps and falls along a cosine.
        batch_rows: rows of a batch, removed ones included.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    draw, step = Random(seed), 0
    total = epochs * math.ceil(len(rows) / batch_rows)
    model.train()
    for _ in range(epochs):
        order = draw.sample(range(len(rows)), len(rows))
        for first in range(0, len(order), batch_rows):
            kept = [rows[index] for index in order[first : first + batch_rows] if index not in removed]
            step += 1
            for group in optimiser.param_groups:
                cosine = 0.5 * (1 + math.cos(math.pi * step / total))
                group["lr"] = learning_rate * min(1.0, 10 * step / total) * cosine
            if not kept:
                continue
            loss = -score_answers(model, collate(kept, 0)).mean_logps.mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    return model.eval()
