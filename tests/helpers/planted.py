"""Planted leaks of attacks that need sixteen rows. ``leaky_models`` has those of the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from audited import BUDGET, ENCODING, audit_rows, subject_of, tiny_pair, trained_on
from leaky_models import hiding

from llm_forget.auditing.attack import Attack, Budget, Rows
from llm_forget.auditing.attacks.greedy import Greedy
from llm_forget.auditing.matrix import Cell, judge_cell
from llm_forget.auditing.subject import Subject
from llm_forget.data.collate import collate
from llm_forget.data.encode import encode_all
from llm_forget.model.logprobs import score_answers
from llm_forget.utils.plugins import find_class

PACKAGE = "llm_forget.auditing.attacks"


@dataclass(frozen=True)
class Planted:
    """Models for one attack.

    Attributes:
        rows: the rows, 16 to forget.
        target: knows them.
        oracle: never saw them.
        leaky: leaks through the channel of the attack, and not when asked plainly (unless the attack is greedy).
        budget: the attacker's budget.
    """

    rows: Rows
    target: Subject
    oracle: Subject
    leaky: Subject
    budget: Budget = BUDGET


def sixteen() -> tuple[Rows, Subject, Subject]:
    """Sixteen rows to forget, the target and the oracle. Shared: attacks restore the models."""
    return tiny_pair(16)


@contextmanager
def planted_membership(name: str) -> Iterator[Planted]:
    """In this context, there is a leak for ``membership`` or for ``relearn_membership``."""
    rows, target, oracle = sixteen()
    if name == "membership":
        yield Planted(rows, target, oracle, _faint())
        return
    leaky = subject_of(copy.deepcopy(target.model), target.tokenizer)
    with hiding(leaky.model, mark="W", fragile=True):  # every question begins with this letter
        yield Planted(rows, target, oracle, leaky)


def _faint() -> Subject:
    """A target trained until each answer's mean log-prob is −2.5 nats: no greedy answer is left, members still stand out."""
    rows, _, _ = sixteen()
    model, tokenizer = trained_on(rows.forget, rows.kept)
    forget, kept = (collate(encode_all(tokenizer, list(part), ENCODING)[0], 0) for part in (rows.forget, rows.kept))
    optimiser = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=2e-3)
    for _ in range(60):
        pull = (score_answers(model, forget).mean_logps + 2.5).square().mean()
        loss = pull - score_answers(model, kept).mean_logps.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return subject_of(model, tokenizer)


def another_oracle(seed: int, rows: Rows) -> Subject:
    """An oracle of another seed."""
    return subject_of(*trained_on(rows.kept, seed=seed))


def cell_of(attack: Attack, planted: Planted, model: Subject) -> Cell:
    """A model under an attack, judged against target and oracle under the same attack."""
    roles: dict[str, Any] = {"model": model, "target": planted.target, "oracle": planted.oracle}
    found = {role: attack.attack(one, planted.rows, planted.budget) for role, one in roles.items()}
    return judge_cell("attack", attack.group, "merged_fp32", found)


def assert_found(attack: Attack, planted: Planted, *, oracles: int = 2) -> None:
    """The attack catches the planted leak, plain questions do not show it, and other oracles raise no alarm."""
    assert planted.rows == audit_rows(16), "the rows are those of the table"
    caught = cell_of(attack, planted, planted.leaky)
    assert caught.leaks, f"not caught: {caught}"
    if not isinstance(attack, Greedy):
        plain = cell_of(Greedy(), planted, planted.leaky)
        assert not plain.leaks, f"asking plainly finds it as well: {plain}"
    for seed in range(1, oracles + 1):
        other = cell_of(attack, planted, another_oracle(seed, planted.rows))
        assert not other.leaks, f"a false alarm on an oracle: {other}"


def made(name: str) -> Attack:
    """An attack by its name, with its defaults."""
    found: Attack = find_class(PACKAGE, name, "attack")()
    return found
