"""Teach a model some rows for a few steps, and ask it about others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_forget.auditing.attack import Access, Attack, Budget, Group
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.tools.probing import encoded
from llm_forget.auditing.tools.side_adapter import SideAdapter, teach
from llm_forget.data.encode import Encoded
from llm_forget.data.examples import Example
from llm_forget.evaluation.tokens import as_floats
from llm_forget.model.limits import padding_id

if TYPE_CHECKING:
    from llm_forget.auditing.forms import Form
    from llm_forget.auditing.subject import Subject
    from llm_forget.evaluation.tokens import Floats, TokenScores

LEARNING_RATE = 1e-3  # several times what LoRA fine-tuning usually takes, so that a few steps tell


def relearnt(subject: Subject, taught: Sequence[Example], asked: Sequence[Example], budget: Budget) -> Floats:
    """Mean log-probs of answers after fine-tuning on some rows. Attacks that teach the same rows share one training.

    The model gets a LoRA, which is dropped afterwards; its weights are not touched.

    Args:
        subject: the loaded model.
        taught: rows to train on, at least one.
        asked: rows to ask about, none of them taught.
        budget: steps, rows per step, and seed.

    Returns:
        (E,) mean log-prob per token of each asked row's answer.
    """
    own, material = encoded(subject, asked), encoded(subject, taught)

    def compute(missing: list[Encoded]) -> list[TokenScores]:
        with subject.changed(weights=False) as model:
            adapter = SideAdapter(model, seed=budget.seed)
            teach(
                model,
                adapter,
                material,
                pad_token_id=padding_id(subject.tokenizer, model),
                steps=budget.steps,
                learning_rate=LEARNING_RATE,
                batch_size=budget.batch,
                seed=budget.seed,
            )
            with adapter.active():
                scores = subject.score_tokens(missing)
        return [scores.row(index) for index in range(len(missing))]

    settings = (budget.steps, budget.batch, budget.seed)
    found = subject.remember(("relearnt", settings, tuple(row.input_ids for row in material)), own, compute)
    return as_floats([float(one.mean_logps()[0]) for one in found])


@dataclass(frozen=True)
class Relearning(Attack):
    """What all attacks that teach rows declare."""

    group: ClassVar[Group] = "training"
    needs: ClassVar[Access] = Access.WEIGHTS
    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Hu et al. 2024, arXiv:2406.13356, relearning"

    def refuses(self, form: Form) -> str:
        """Only merged weights are trained: training a LoRA on top of an adapter is the same."""
        if form.packed:
            return "its weights are held in 8 bits and cannot be trained"
        twin = form.name in FORMS and (form.adapter or form.quantiser is not None)
        return "relearning is tried on the merged weights" if twin else ""
