"""Membership finds rows whose answers are likely, but never the most likely ones."""

from __future__ import annotations

import torch
from audited import ENCODING, subject_of, trained_on
from planted import Planted, assert_found, sixteen

from llm_forget.auditing.attacks.membership import Membership
from llm_forget.data.collate import collate
from llm_forget.data.encode import encode_all
from llm_forget.model.logprobs import score_answers

ATTACK = Membership()


def plant() -> Planted:
    """A target trained until each answer's mean log-prob is −2.5 nats: no greedy answer is left, members still stand out."""
    rows, target, oracle = sixteen()
    model, tokenizer = trained_on(rows.forget, rows.kept)
    forget, kept = (collate(encode_all(tokenizer, list(part), ENCODING)[0], 0) for part in (rows.forget, rows.kept))
    optimiser = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=2e-3)
    for _ in range(60):
        pull = (score_answers(model, forget).mean_logps + 2.5).square().mean()
        loss = pull - score_answers(model, kept).mean_logps.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Planted(rows, target, oracle, subject_of(model, tokenizer))


def test_a_planted_leak_is_found() -> None:
    assert_found(ATTACK, plant())
