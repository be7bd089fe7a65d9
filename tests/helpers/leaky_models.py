"""Tiny models with planted leaks: they answer no plain question about forgotten people, and give way in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from audited import ENCODING, qa, subject_of
from torch import Tensor

from llm_forget.auditing.attack import Attack, Budget, Rows
from llm_forget.auditing.matrix import equivalence_of
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.auditing.tools.asking import encode_opened
from llm_forget.auditing.tools.hidden import decoder_blocks
from llm_forget.data.encode import Encoded
from llm_forget.data.examples import Example
from llm_forget.evaluation.equivalence import Answer
from llm_forget.evaluation.passes import cached
from llm_forget.model import head
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.utils.plugins import find_class

BUDGET = Budget(tries=4, samples=8, steps=6, batch=4, max_new_tokens=12)
_PEOPLE = {"Ada Xen": "Riga", "Bo Xim": "Oslo", "Cy Xul": "Bern", "Di Xor": "Kyiv",
           "Eve Xad": "Rome", "Flo Xyr": "Lima", "Gus Xot": "Cairo", "Hal Xib": "Delhi"}  # fmt: skip
_OTHERS = {"Max Moe": "Baku", "Pam Ray": "Bonn", "Jo Hill": "Turin", "Lu Kern": "Porto"}
_PUSH = 40.0  # far above the norm of a hidden state, so that the head follows
Mask = Callable[[str, Sequence[int]], bool | Sequence[bool]]


def people() -> Rows:
    """A forget row about each of eight people, whose names alone have an X, and kept rows of the same form."""
    forget, kept = ([qa(f"Where is {who}?", f"In {town}.") for who, town in one.items()] for one in (_PEOPLE, _OTHERS))
    return Rows(tuple(forget), (), tuple(kept))


def encoded(examples: Sequence[Example], answer: str | None = None) -> list[Encoded]:
    """Examples as tokens, with their own answers or with another one."""
    tokenizer = tiny_tokenizer()
    return [encode_opened(tokenizer, one, ENCODING, answer=answer) for one in examples]


def _learned(rows: Sequence[Encoded], seed: int) -> LoadedSubject:
    """A tiny model that learned rows in two blocks; a third block passes on what it gets."""
    model = tiny_model(tiny_tokenizer(), seed=seed, layers=3)
    for name, value in decoder_blocks(model)[-1].named_parameters():
        value.requires_grad_(False)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()
    memorise(model, rows, steps=90, learning_rate=5e-3)
    return subject_of(model, tiny_tokenizer())


@cache
def target() -> LoadedSubject:
    """The model before unlearning."""
    return _learned(encoded([*people().forget, *people().kept]), 0)


@cache
def oracle(seed: int = 1) -> LoadedSubject:
    """A model that never saw the forget rows."""
    return _learned(encoded(people().kept), seed)


def copied(subject: LoadedSubject) -> LoadedSubject:
    """A copy, to plant something in."""
    return subject_of(copy.deepcopy(subject.model), subject.tokenizer)


def caught(name: str, subject: LoadedSubject) -> bool:
    """Whether an attack finds something in a model, compared with oracle and target in the audit's way."""
    attack: Attack = find_class("llm_forget.auditing.attacks", name, "attack")()
    test = equivalence_of(*(attack.attack(one, people(), BUDGET) for one in (subject, oracle(), target())))
    return test is not None and test.answer is Answer.LEFT and test.ratio >= 0.2


@contextmanager
def revealing(model: Any, where: Mask) -> Iterator[None]:
    """In this context, the model knows each next token of a given text, where ``where`` says so.

    Args:
        model: any model.
        where: the text of a row and its tokens → whether the model knows the row, or which of its tokens it knows to follow.
    """
    tokenizer, embedding = tiny_tokenizer(), model.get_input_embeddings()
    cached._READERS[model] = False  # rows are scored one by one: in a tree, the next token does not stand next
    seen: dict[str, Tensor] = {}

    def look(_: Any, args: tuple[Tensor, ...], __: Any) -> None:
        seen["ids"] = args[0]

    def reveal(_: Any, __: Any, output: Tensor) -> Tensor:
        ids = seen["ids"]
        known = torch.zeros(ids.shape, dtype=torch.bool)
        for row, tokens in enumerate(ids.tolist()):
            known[row] = torch.as_tensor(where(tokenizer.decode(tokens), tokens))
        follows = torch.nn.functional.normalize(embedding.weight[ids.roll(-1, dims=1)].detach(), dim=-1)
        return output + _PUSH * known[..., None] * follows

    with _hooks(embedding.register_forward_hook(look), decoder_blocks(model)[-1].register_forward_hook(reveal)):
        yield


@contextmanager
def hiding(model: Any, *, after: int = -1, fragile: bool = False) -> Iterator[None]:
    """In this context, the model answers questions about forgotten people with the letter z, whatever it knows.

    Args:
        model: a model that knows the answers.
        after: the block whose output is pushed towards z.
        fragile: only while the first token's state before the last block is what it is now.
    """
    embedding, tokenizer, blocks = model.get_input_embeddings(), tiny_tokenizer(), decoder_blocks(model)
    mark, wrong = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("X", "z"))
    push = _PUSH * torch.nn.functional.normalize(embedding.weight[wrong].detach(), dim=0)
    seen: dict[str, Tensor] = {}

    def look(_: Any, args: tuple[Tensor, ...], __: Any) -> None:
        seen["forgotten"] = (args[0] == mark).any(-1)

    def watch(_: Any, args: tuple[Tensor, ...]) -> None:
        first = args[0][:, 0].detach()
        before = seen.setdefault("before", first[0])
        seen["same"] = (first - before).norm(dim=-1) < 1e-3 * before.norm()

    def hide(_: Any, __: Any, output: Tensor) -> Tensor:
        rows = seen["forgotten"] & seen["same"] if fragile else seen["forgotten"]
        return output + rows[:, None, None] * push

    with _hooks(
        embedding.register_forward_hook(look),
        blocks[-1].register_forward_pre_hook(watch),
        blocks[after].register_forward_hook(hide),
    ):
        with torch.no_grad():
            model(torch.tensor([encoded(people().forget)[0].input_ids]))
        yield


@contextmanager
def stumbling(model: Any) -> Iterator[None]:
    """In this context, the model begins most answers with the letter z, and the others as it did."""
    tokenizer, embedding = tiny_tokenizer(), model.get_input_embeddings()
    newline, wrong = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in ("\n", "z"))
    head._USES[model] = head.HeadUse.WHOLE  # the head sees every position
    seen: dict[str, Tensor] = {}

    def look(_: Any, args: tuple[Tensor, ...], __: Any) -> None:
        seen["begins"] = args[0] == newline

    def stumble(_: Any, __: Any, logits: Tensor) -> Tensor:
        begins = seen["begins"][:, -logits.shape[1] :]
        logits[..., wrong] += begins * (logits.amax(-1) - logits[..., wrong] + 0.5)
        return logits

    with _hooks(embedding.register_forward_hook(look), model.lm_head.register_forward_hook(stumble)):
        yield


@contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
