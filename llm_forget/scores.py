"""The tensors that a loss can read, and two functions that average over them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class AnswerScores:
    """Scores of the answers of B examples (A = longest answer, V = vocabulary, H = hidden size).

    All optional tensors are None unless the loss asks for them in its ``needs``.

    Attributes:
        token_logps: (B, A) log-probability of each answer token in nats, 0 where ``mask`` is False.
        mask: (B, A) True where there is an answer token.
        tokens: (B, A) the answer tokens, 0 where ``mask`` is False.
        logits: (B, A, V) the logits that predict them, 0 where ``mask`` is False.
        reference_logps: (B,) summed log-probability under the reference, in nats.
        reference_logits: (B, A, V) logits under the reference.
        hidden: (B, A, H) hidden states after one block at the positions that predict the answer tokens, 0 where ``mask`` is
            False.
        reference_hidden: (B, A, H) hidden states under the reference.
        alternative: the scores of an alternative answer to each prompt.
        alternative_tokens: (B, A′) the tokens of an alternative answer to each prompt, padded with −1.
    """

    token_logps: Tensor
    mask: Tensor
    tokens: Tensor
    logits: Tensor | None = None
    reference_logps: Tensor | None = None
    reference_logits: Tensor | None = None
    hidden: Tensor | None = None
    reference_hidden: Tensor | None = None
    alternative: AnswerScores | None = None
    alternative_tokens: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Answer tokens per example, (B,); at least 1, so that an example without answer tokens gives a loss of 0, not NaN."""
        return self.mask.sum(-1).clamp(min=1)

    @property
    def logps(self) -> Tensor:
        """Summed log-probability of each answer, (B,), in nats."""
        return self.token_logps.sum(-1)

    @property
    def mean_logps(self) -> Tensor:
        """Mean log-probability per answer token, (B,), in nats; its negative is the cross-entropy."""
        return self.token_logps.sum(-1) / self.lengths

    def rows(self, index: slice | Tensor) -> AnswerScores:
        """The scores of the selected examples."""

        def some(value: Tensor | AnswerScores | None) -> Tensor | AnswerScores | None:
            if isinstance(value, AnswerScores):
                return value.rows(index)
            return None if value is None else value[index]

        return AnswerScores(**{item.name: some(getattr(self, item.name)) for item in fields(self)})  # type: ignore[arg-type]


def mean_over_answer(per_token: Tensor, mask: Tensor) -> Tensor:
    """Mean over the answer tokens, (B, A) → (B,); 0 for an example without answer tokens."""
    return (per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def kl_divergence(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """KL(reference ‖ policy) over the vocabulary at each position, (…, V) and (…, V) → (…), in nats."""
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy_logits.log_softmax(-1))).sum(-1)
