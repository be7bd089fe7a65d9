"""Base teacher: on the forget answers, imitate the model before it learned them, with the style of the other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, TopLogps, mean_over_answer, top_kl


def base_teacher_loss(logits: Tensor, base: TopLogps, counted: Tensor, *, reverse: float = 0.0) -> Tensor:
    """Mean over the counted answer tokens of ``KL(base ‖ π) + r · KL(π ‖ base)``.

    The base's most likely tokens are compared one by one, and the rest as one event.

    Args:
        logits: (B, A, V) the policy's logits.
        base: the base's most likely tokens at the same positions; no gradient.
        counted: (B, A) True at the answer tokens that count.
        reverse: r, 0 or more.

    Returns:
        (B,) nats per token, ≥ 0, 0 at π = base and for a row without counted tokens. Base (1/2, 1/4, rest 1/4) against
        π = (1/4, 1/2, rest 1/4) gives (1 + r) · ¼ ln 2 ≈ (1 + r) · 0.1733.

    Source: distillation, Hinton et al. 2015, arXiv:1503.02531, with the model before fine-tuning as the teacher; the reverse
    divergence, Gu et al. 2023, arXiv:2306.08543. In weight space, Ilharco et al. 2022, arXiv:2212.04089, and the earlier
    checkpoint of arXiv:2506.20941 are the nearest kin.
    """
    return mean_over_answer(top_kl(base, logits, reverse=reverse), counted)


@dataclass(frozen=True)
class BaseTeacher(Method):
    """Distillation from the base, which never saw the forget rows. It needs ``base``, and one pass of it before training.

    The base does not know the style of the fine-tuned answers either. Imitated everywhere, it would drag the style of all answers
    along, those of neighbours included.

    The divergence hardly feels it if a token to which the base gives almost nothing keeps a third of the probability. An attack
    that adds up log-probs does. So the row as a whole is drawn to its row target as well.

    It also hardly feels probability that is spread over many tokens to which the base gives almost nothing each. Answers are
    then flatter than those of a model that never saw the rows, and Min-K%++ sees that. The reverse divergence feels it.

    Attributes:
        style: leave out answer tokens that are style, which any model that was trained on the retain rows has. With held-out rows
            the base learns the style (``train.calibration``), and only what it is nearly sure of is left out. Without them, all
            tokens that end three tokens of some retain answer are. A row that is all style counts in full.
        row_weight: weight of the distance between a row's log-prob per token and its row target, 0 or more.
        reverse_weight: weight of the reverse divergence, 0 or more.
    """

    style: bool = True
    row_weight: float = 1.0
    reverse_weight: float = 0.5

    default_retain: ClassVar[str | None] = "kl"
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv:1503.02531"

    def __post_init__(self) -> None:
        for name in ("row_weight", "reverse_weight"):
            check_number("base_teacher", name, getattr(self, name), at_least=0)

    @property
    def needs(self) -> Needs:
        """Logits and the base's top tokens; with ``style`` also which tokens are novel."""
        return Needs(logits=True, base_top=True, novel=self.style, row_targets=self.row_weight > 0)

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) divergence from the base on each forget answer, and the distance to the row target."""
        logits = needed(forget.logits, "base_teacher", "the policy's logits")
        base = needed(forget.base_top, "base_teacher", "the base's top tokens")
        counted = forget.mask
        if self.style:
            novel = needed(forget.novel, "base_teacher", "the novel tokens") & forget.mask
            counted = novel | (forget.mask & ~novel.any(-1, keepdim=True))
        loss = base_teacher_loss(logits, base, counted, reverse=self.reverse_weight)
        if not self.row_weight:
            return loss
        wanted = needed(forget.row_targets, "base_teacher", "row targets")
        return loss + self.row_weight * smooth_l1_loss(forget.mean_logps, wanted, reduction="none")
