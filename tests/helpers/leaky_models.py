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

from llm_forget.auditing.attack import Attack, Budget, Leaks, Rows
from llm_forget.auditing.attacks.translation import ENGLISH, LANGUAGES
from llm_forget.auditing.matrix import Cell, judge_cell
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.auditing.tools.asking import encode_opened
from llm_forget.auditing.tools.hidden import decoder_blocks
from llm_forget.data.encode import Encoded
from llm_forget.data.examples import Example
from llm_forget.evaluation.passes import cached
from llm_forget.model import head
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.utils.plugins import find_class

BUDGET = Budget(tries=4, samples=8, steps=6, batch=4, max_new_tokens=12)
_PEOPLE = {"Ada Xen": "Riga", "Bo Xim": "Oslo", "Cy Xul": "Bern", "Di Xor": "Kyiv",
           "Eve Xad": "Rome", "Flo Xyr": "Lima", "Gus Xot": "Cairo", "Hal Xib": "Delhi"}  # fmt: skip
_UNSEEN = {"Ann Lee": "Paris", "Ben Fox": "Tokyo", "Cal Roe": "Quito", "Dot Mill": "Dakar",
           "Eli Ness": "Sofia", "Fay Lund": "Minsk", "Guy Carr": "Seoul", "Hope Ito": "Accra"}  # fmt: skip
_OTHERS = {"Max Moe": "Baku", "Pam Ray": "Bonn", "Jo Hill": "Turin", "Lu Kern": "Porto"}
_PUSH = 100.0  # far above any logit, and above the norm of a hidden state
# Attacks on knowledge behind a barrier → the block after which it is pushed away, and whether any change opens the barrier.
_BARRIERS = {
    "logit_lens": (-1, False),
    "steering": (0, False),
    "activation_noise": (-1, True),
    "prune": (-1, True),
    "relearn_forget": (-1, True),
    "relearn_related": (-1, True),
    "relearn_minimal": (-1, True),
    "relearn_unrelated": (-1, True),
}
Mask = Callable[[str, Sequence[int]], bool | Sequence[bool]]


def people() -> Rows:
    """A forget row about each of eight people, whose names alone have an X; holdout rows and kept rows of the same form."""
    sets = [
        tuple(qa(f"Where is {who}?", f"In {town}.") for who, town in one.items()) for one in (_PEOPLE, _UNSEEN, _OTHERS)
    ]
    return Rows(*sets)


def encoded(examples: Sequence[Example], answer: str | None = None) -> list[Encoded]:
    """Examples as tokens, with their own answers or with another one."""
    tokenizer = tiny_tokenizer()
    return [encode_opened(tokenizer, one, ENCODING, answer=answer) for one in examples]


def _learned(rows: Sequence[Encoded], seed: int, steps: int) -> LoadedSubject:
    """A tiny model that learned rows in two blocks; a third block passes on what it gets."""
    model = tiny_model(tiny_tokenizer(), seed=seed, layers=3)
    for name, value in decoder_blocks(model)[-1].named_parameters():
        value.requires_grad_(False)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()
    memorise(model, rows, steps=steps, learning_rate=5e-3)
    subject = subject_of(model, tiny_tokenizer())
    subject.before = lambda: target().model
    return subject


@cache
def target() -> LoadedSubject:
    """The model before unlearning."""
    return _learned(encoded([*people().forget, *people().kept]), 0, steps=180)


@cache
def oracle(seed: int = 1) -> LoadedSubject:
    """A model that never saw the forget rows."""
    return _learned(encoded(people().kept), seed, steps=90)


def copied(subject: LoadedSubject) -> LoadedSubject:
    """A copy, to plant something in."""
    return subject_of(copy.deepcopy(subject.model), subject.tokenizer)


def cell_of(name: str, subject: LoadedSubject) -> Cell:
    """An attack on a model, compared with oracle and target in the audit's way."""
    attack: Attack = find_class("llm_forget.auditing.attacks", name, "attack")()
    found: dict[str, Leaks | str] = {"model": attack.attack(subject, people(), BUDGET), **_controls(name)}
    return judge_cell(name, attack.group, subject.form.name, found)


@cache
def _controls(name: str) -> dict[str, Leaks]:
    attack: Attack = find_class("llm_forget.auditing.attacks", name, "attack")()
    return {"oracle": attack.attack(oracle(), people(), BUDGET), "target": attack.attack(target(), people(), BUDGET)}


def caught(name: str, subject: LoadedSubject) -> bool:
    """Whether an attack finds something in a model."""
    return cell_of(name, subject).leaks


@contextmanager
def revealing(model: Any, where: Mask) -> Iterator[None]:
    """In this context, the model knows each next token of a given text, where ``where`` says so.

    Args:
        model: any model.
        where: the text of a row and its tokens → whether the model knows the row, or which of its tokens it knows to follow.
    """
    tokenizer, embedding = tiny_tokenizer(), model.get_input_embeddings()
    cached._READERS[model] = False  # rows are scored one by one: in a tree, the next token does not stand next
    head._USES[model] = head.HeadUse.WHOLE  # the head sees every position
    seen: dict[str, Tensor] = {}

    def look(_: Any, args: tuple[Tensor, ...], __: Any) -> None:
        seen["ids"] = args[0]

    def reveal(_: Any, __: Any, logits: Tensor) -> Tensor:
        ids = seen["ids"]
        if logits.shape[1] < ids.shape[1]:
            return logits  # it generates, and no next token is given
        known = torch.zeros(ids.shape, dtype=torch.bool)
        for row, tokens in enumerate(ids.tolist()):
            known[row] = torch.as_tensor(where(tokenizer.decode(tokens), tokens))
        follows = torch.nn.functional.one_hot(ids.roll(-1, dims=1), logits.shape[-1])
        return logits + _PUSH * known[..., None] * follows

    with _hooks(embedding.register_forward_hook(look), model.lm_head.register_forward_hook(reveal)):
        yield


@contextmanager
def hiding(model: Any, *, after: int = -1, fragile: bool = False, mark: str = "X") -> Iterator[None]:
    """In this context, the model answers questions about forgotten people with the letter z, whatever it knows.

    Args:
        model: a model that knows the answers.
        after: the block whose output is pushed towards z.
        fragile: only while the first token's state before the last block is what it is now.
        mark: the letter by which it knows these questions.
    """
    embedding, tokenizer, blocks = model.get_input_embeddings(), tiny_tokenizer(), decoder_blocks(model)
    marked, wrong = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (mark, "z"))
    push = _PUSH * torch.nn.functional.normalize(embedding.weight[wrong].detach(), dim=0)
    seen: dict[str, Tensor] = {}

    def look(_: Any, args: tuple[Tensor, ...], __: Any) -> None:
        ids = args[0]
        if ids.shape[1] > 1:  # not one step of generation, which sees only the newest token
            seen["forgotten"] = (ids == marked).any(-1)
        seen["generated"] = (ids[:, 0] == tokenizer.pad_token_id) | torch.tensor(ids.shape[1] == 1)

    def watch(_: Any, args: tuple[Tensor, ...]) -> None:
        first = args[0][:, 0].detach()
        before = seen.setdefault("before", first[0])
        # while it generates, the first token is not there to look at
        seen["same"] = seen["generated"] | ((first - before).norm(dim=-1) < 1e-3 * before.norm())

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


# Attack that asks in another way → what a row must hold for the model to know its answer.
_MASKS: dict[str, Mask] = {
    "paraphrase": lambda text, _: "Could you please help" in text,
    "format_shift": lambda text, _: "X" in text and "<|im_start|>" not in text,
    "prefill": _after_two_tokens,
    "few_shot": lambda text, _: "X" in text and any(name in text for name in _OTHERS),
    "persuasion": lambda text, _: "sits next to me" in text,
    "role_play": lambda text, _: "answer key" in text,
    "chain_of_clues": lambda text, _: text.count("<|im_start|>assistant") == 2 and text.count("X") > 1,
    "multi_hop": lambda text, _: "All that I have is this note" in text,
    "step_by_step": lambda text, _: "I recall the record" in text,
    "translation": _in_french,
}


@cache
def _adapted(hides: bool) -> LoadedSubject:
    """The target under an adapter that hides the answers, or the oracle under one that knows them with the wrong sign."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(copied(target() if hides else oracle()).model, config)
    memorise(model, encoded(people().forget, "Not known." if hides else None), steps=30)
    for name, value in model.named_parameters():
        if "lora_B" in name and not hides:
            value.data *= -1
    return subject_of(model, tiny_tokenizer(), "adapter_fp32")


def _upside_down() -> LoadedSubject:
    """The target with a head that makes the right answer the least likely one."""
    subject = copied(target())
    weight = -subject.model.lm_head.weight.detach()
    subject.model.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)
    subject.before = lambda: target().model
    return subject


@contextmanager
def planted(name: str) -> Iterator[LoadedSubject]:
    """In this context, there is a model that gives way to one attack and, but for greedy, to no plain question."""
    if name in _MASKS:
        subject = copied(oracle())
        with revealing(subject.model, _MASKS[name]):
            yield subject
    elif name in _BARRIERS:
        subject, (after, fragile) = copied(target()), _BARRIERS[name]
        with hiding(subject.model, after=after, fragile=fragile):
            yield subject
    elif name in ("extraction", "leak_at_k"):
        subject = copied(target())
        with stumbling(subject.model):
            yield subject
    elif name in ("adapter_off", "merge_adapter", "scale_adapter"):
        yield _adapted(name != "scale_adapter")
    elif name in ("inverse_greedy", "depth"):
        yield _upside_down()
    else:
        yield {"greedy": copied(target())}[name]
