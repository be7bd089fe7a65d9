"""The tensors that a loss can read, and functions that average over them or compare distributions."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """The tensors that a loss reads in addition to the policy's log-probs; nothing else is computed.

    Attributes:
        logits: the policy's logits at answer positions.
        reference_logps: the reference's summed answer log-probs, also of the alternatives; one pass before training.
        reference_logits: the reference's logits at answer positions; one forward without gradient in every step.
        alternative: the scores of an alternative answer to each forget prompt; one more row each in the same forward.
        alternative_tokens: the tokens of that answer only, which costs nothing.
        hidden: the policy's hidden states at the positions that predict the answer tokens.
        reference_hidden: the reference's hidden states; one forward without gradient in every step.
        layer: the block whose output is the hidden state, from 0; None for the default (``logprobs.hidden_layer``).
        base_top: the most likely tokens under the base, the model before fine-tuning; one pass before training.
        reference_top: the same under the reference.
        row_targets: the log-prob that each forget row should reach; see ``stop.forget_target``.
        swapped_top: the most likely tokens under the reference on the forget rows with another name; one pass before training.
        novel: which tokens of the answers are not in the style of the retain answers.
        base_weights: the base itself, while a method with ``finish`` trains on it.
    """

    logits: bool = False
    reference_logps: bool = False
    reference_logits: bool = False
    alternative: bool = False
    alternative_tokens: bool = False
    hidden: bool = False
    reference_hidden: bool = False
    layer: int | None = None
    base_top: bool = False
    reference_top: bool = False
    row_targets: bool = False
    swapped_top: bool = False
    novel: bool = False
    base_weights: bool = False

    @property
    def reference_forward(self) -> bool:
        """Whether the reference runs in every step."""
        return self.reference_logits or self.reference_hidden

    @property
    def any_alternative(self) -> bool:
        """Whether each forget example needs an alternative answer."""
        return self.alternative or self.alternative_tokens


@dataclass(frozen=True)
class TopLogps:
    """The most likely next tokens at each answer position, for a teacher that is kept in memory (K tokens per position).

    Attributes:
        tokens: (B, A, K) the tokens.
        logps: (B, A, K) their log-probs in nats; the rest of the probability belongs to all other tokens together.
    """

    tokens: Tensor
    logps: Tensor


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
        base_top: the most likely tokens under the base; certain of token 0 where ``mask`` is False.
        reference_top: the same under the reference.
        row_targets: (B,) the mean log-prob per answer token that each row should reach, in nats.
        swapped_top: the most likely tokens under the reference where the rows have another name.
        novel: (B, A) True at answer tokens that end no three tokens of a retain answer.
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
    base_top: TopLogps | None = None
    reference_top: TopLogps | None = None
    row_targets: Tensor | None = None
    swapped_top: TopLogps | None = None
    novel: Tensor | None = None

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

        def some(value: Tensor | AnswerScores | TopLogps | None) -> Tensor | AnswerScores | TopLogps | None:
            if isinstance(value, AnswerScores):
                return value.rows(index)
            if isinstance(value, TopLogps):
                return TopLogps(value.tokens[index], value.logps[index])
            return None if value is None else value[index]

        return AnswerScores(**{item.name: some(getattr(self, item.name)) for item in fields(self)})  # type: ignore[arg-type]


def mean_over_answer(per_token: Tensor, mask: Tensor) -> Tensor:
    """Mean over the answer tokens, (B, A) → (B,); 0 for an example without answer tokens."""
    return (per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def kl_divergence(reference_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """KL(reference ‖ policy) over the vocabulary at each position, (…, V) and (…, V) → (…), in nats."""
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - policy_logits.log_softmax(-1))).sum(-1)


def top_kl(teacher: TopLogps, policy_logits: Tensor, *, reverse: float = 0.0) -> Tensor:
    """KL(teacher ‖ policy) + reverse · KL(policy ‖ teacher) at each position, (B, A, V) → (B, A) in nats.

    All tokens outside the teacher's K are one event, so each KL is a lower bound of the KL over the vocabulary. The first is
    equal to it if the K tokens hold all of the teacher's probability. Teacher (1/2, 1/4 and 1/4 elsewhere) against policy (1/4,
    1/2 and 1/4 elsewhere) gives ¼ ln 2 ≈ 0.1733 either way.
    """

    def part(theirs: Tensor, own: Tensor) -> Tensor:
        """(p − reverse · q)(ln p − ln q) of events with log-probs ln p and ln q."""
        return (theirs.exp() - reverse * own.exp()) * (theirs - own)

    own = policy_logits.log_softmax(-1).gather(-1, teacher.tokens)
    return part(teacher.logps, own).sum(-1) + part(log_rest(teacher.logps), log_rest(own))


def log_rest(logps: Tensor) -> Tensor:
    """Log of the probability outside some tokens, (…, K) → (…), at least that of one in 10⁷."""
    return (1 - logps.exp().sum(-1)).clamp(min=1e-7).log()
