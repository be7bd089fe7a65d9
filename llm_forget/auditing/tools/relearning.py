"""Teach a model some rows for a few steps, and ask it about others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm_forget.auditing.attack import Budget
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.tools.probing import encoded
from llm_forget.auditing.tools.side_adapter import SideAdapter, teach
from llm_forget.data.examples import Example
from llm_forget.model.limits import padding_id

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject

LEARNING_RATE = 1e-3  # several times what LoRA fine-tuning usually takes, so that a few steps tell


@contextmanager
def taught(subject: Subject, examples: Sequence[Example], budget: Budget) -> Iterator[None]:
    """In this context, the model has been fine-tuned on some rows: a LoRA beside it, which is dropped afterwards.

    Args:
        subject: the loaded model.
        examples: rows to train on, at least one.
        budget: steps, rows per step, and seed.
    """
    with subject.changed(weights=False) as model:
        adapter = SideAdapter(model, seed=budget.seed)
        teach(
            model,
            adapter,
            encoded(subject, examples),
            pad_token_id=padding_id(subject.tokenizer, model),
            steps=budget.steps,
            learning_rate=LEARNING_RATE,
            batch_size=budget.batch,
            seed=budget.seed,
        )
        with adapter.active():
            yield


def not_trained(form: Form) -> str:
    """Why a form is not relearnt; empty if it is. Training beside an adapter is the same as training beside merged weights."""
    if form.packed:
        return "its weights are held in 8 bits and cannot be trained"
    twin = form.name in FORMS and (form.adapter or form.quantiser is not None)
    return "relearning is tried on the merged weights" if twin else ""
