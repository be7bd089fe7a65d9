"""Scores for the contract of a method: from a tiny model, or from a leaf tensor of random logits."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from llm_forget.data.collate import collate
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import Example, Message
from llm_forget.methods import Method
from llm_forget.model.logprobs import Part, hidden_layer, score_parts
from llm_forget.scores import AnswerScores, TopLogps
from llm_forget.testing import tiny_tokenizer
from llm_forget.train.teacher import teacher_of
from llm_forget.utils import plugins

PAD = 0
# The optional tensors, with the same names in ``Needs`` and ``AnswerScores``.
OPTIONAL = (
    *("logits", "reference_logps", "reference_logits", "hidden", "alternative", "alternative_tokens"),
    *("base_top", "reference_top", "row_targets", "novel", "swapped_top"),
)
TEXTS = [
    ("Where is Ada?", "In Riga, by the sea.", "I do not know."),
    ("Who is Bo?", "A tailor.", "No idea."),
    ("And Cy?", "Left.", "I never heard of it."),
    ("Di?", "A red cat.", "That is not known to me."),
]


def method_class(name: str) -> Any:
    return plugins.find_class("llm_forget.methods", name, "forget_loss")


def numeric_fields(name: str) -> list[str]:
    """Return the numeric hyperparameters of a method."""
    cls = method_class(name)
    hints = get_type_hints(cls)
    return [item.name for item in dataclasses.fields(cls) if re.search("int|float", str(hints[item.name]))]


def encoded(column: int) -> list[Encoded]:
    """Encode the questions with the answers in a column of ``TEXTS``: 1 for forget answers, 2 for alternatives."""
    examples = [Example(str(index), (Message("user", text[0]),), text[column]) for index, text in enumerate(TEXTS)]
    return encode_all(tiny_tokenizer(), examples, EncodingConfig())[0]


class Scorer:
    """The policy's scores, with exactly the tensors that the method needs."""

    def __init__(self, method: Method, reference: nn.Module, others: dict[str, Encoded]) -> None:
        self.method, self.reference, self.others = method, reference, others

    def __call__(self, model: nn.Module, rows: list[Encoded], width: int = 1) -> AnswerScores:
        needs = self.method.needs
        others = [self.others[row.id] for row in rows]
        batch = collate([*rows, *(others if needs.alternative else [])], PAD, width)
        count = len(rows)
        parts = [Part(slice(0, count), needs.logits, needs.hidden)]
        if needs.alternative:
            parts.append(Part(slice(count, None)))
        layer = hidden_layer(model, needs.layer) if needs.hidden else None
        found = score_parts(model, batch, parts, layer=layer)
        every = [Part(part.rows, logits=True) for part in parts]
        with torch.no_grad():
            theirs = score_parts(self.reference, batch, every)
        if needs.reference_logps:
            found = [
                dataclasses.replace(ours, reference_logps=known.logps)
                for ours, known in zip(found, theirs, strict=True)
            ]
        answers = [torch.tensor(row.input_ids[row.prompt_length :]) for row in others]
        tokens = nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-1)
        return dataclasses.replace(
            found[0],
            reference_logits=theirs[0].logits if needs.reference_logits else None,
            alternative=found[1] if needs.alternative else None,
            alternative_tokens=tokens if needs.alternative_tokens else None,
            swapped_top=unlike(theirs[0]) if needs.swapped_top else None,
            base_top=self.top(rows, found[0].mask) if needs.base_top else None,
            reference_top=self.top(rows, found[0].mask) if needs.reference_top else None,
            row_targets=torch.full((count,), -3.0) if needs.row_targets else None,
            novel=found[0].mask.clone() if needs.novel else None,
        )

    def top(self, rows: list[Encoded], mask: Tensor) -> TopLogps:
        """The reference's most likely tokens, which stand for the base's too."""
        return teacher_of(self.reference, rows, PAD)[0].of(torch.arange(len(rows)), mask)

    def loss(self, model: nn.Module, rows: list[Encoded], width: int = 1) -> Tensor:
        return self.method.forget_loss(self(model, rows, width))


def unlike(theirs: AnswerScores, top: int = 64) -> TopLogps:
    """Return a teacher that does not know the answers: the reference's logits, with those of the answer tokens lowered."""
    assert theirs.logits is not None
    lowered = theirs.logits.detach().scatter_add(
        -1, theirs.tokens[..., None], theirs.logits.new_full((*theirs.tokens.shape, 1), -4.0)
    )
    best = lowered.log_softmax(-1).topk(min(top, lowered.shape[-1]), dim=-1)
    return TopLogps(best.indices, best.values)


def made_up(method: Method, leaf: Tensor, mask: Tensor, reference: float = -3.0) -> AnswerScores:
    """Return scores without a model, from a (B, A, V) leaf of logits: token 0 is the answer, token 1 the alternative."""
    torch.manual_seed(0)
    needs = method.needs
    kept, logps = leaf * mask[..., None], leaf.log_softmax(-1) * mask[..., None]
    known = torch.full((len(mask),), reference) if needs.reference_logps else None
    top = TopLogps(torch.arange(1, 4).expand(*mask.shape, 3), torch.full((*mask.shape, 3), -1.5))
    other = AnswerScores(logps[..., 1], mask, torch.ones_like(mask, dtype=torch.long), reference_logps=known)
    return AnswerScores(
        token_logps=logps[..., 0],
        mask=mask,
        tokens=torch.zeros(mask.shape, dtype=torch.long),
        logits=kept if needs.logits else None,
        reference_logps=known,
        reference_logits=torch.randn(leaf.shape) * mask[..., None] if needs.reference_logits else None,
        hidden=kept if needs.hidden else None,
        alternative=other if needs.alternative else None,
        alternative_tokens=torch.ones_like(mask, dtype=torch.long) if needs.alternative_tokens else None,
        swapped_top=TopLogps(*_top(mask)) if needs.swapped_top else None,
        base_top=top if needs.base_top else None,
        reference_top=top if needs.reference_top else None,
        row_targets=torch.full((len(mask),), -3.0) if needs.row_targets else None,
        novel=mask.clone() if needs.novel else None,
    )


def _top(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens 1 to 3 with most of the probability, at every position."""
    tokens = torch.arange(1, 4).expand(*mask.shape, 3)
    return tokens, torch.tensor([0.5, 0.3, 0.1]).log().expand(*mask.shape, 3)


def leaf_of(size: tuple[int, int], answer_logit: float = 0.5) -> Tensor:
    """Return random logits, (B, A, 7); the first token of each position has the given logit."""
    leaf = torch.randn((*size, 7), generator=torch.Generator().manual_seed(0))
    leaf[..., 0] = answer_logit
    return leaf.requires_grad_()
