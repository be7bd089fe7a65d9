"""SHRED: self-distillation from the reference, with the least likely answer tokens demoted and the others kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llm_forget.methods import Method, Needs, check_number, needed
from llm_forget.scores import AnswerScores, kl_divergence, mean_over_answer


def surprising(reference_logps: Tensor, mask: Tensor, *, share: float, skip: int) -> Tensor:
    """The positions of the least likely answer tokens under the reference, which carry the information of an answer.

    Args:
        reference_logps: (B, A) log-probs of the answer tokens under the reference.
        mask: (B, A) True at answer tokens.
        share: share of an answer's tokens to take, rounded up.
        skip: first answer tokens that are never taken, unless the answer has no others.

    Returns:
        (B, A) True at these positions. Log-probs (−1, −3, −2) with share ½ and skip 0 give the last two.
    """
    lengths = mask.sum(-1, keepdim=True)
    place = torch.arange(mask.shape[-1], device=mask.device)[None, :]
    open_ = mask & (place >= torch.where(lengths > skip, skip, 0))
    order = reference_logps.masked_fill(~open_, float("inf")).argsort(-1).argsort(-1)
    return open_ & (order < (share * open_.sum(-1, keepdim=True)).ceil())


def shred_loss(
    logits: Tensor, reference_logits: Tensor, tokens: Tensor, mask: Tensor, *, share: float, skip: int, top: int
) -> Tensor:
    """KL to the reference, in which the true token of each chosen position has the logit of the ``top``-th best token.

    Args:
        logits: (B, A, V) the policy's logits.
        reference_logits: (B, A, V) the reference's logits; detached.
        tokens: (B, A) the answer tokens.
        mask: (B, A) True at answer tokens.
        share: share of the answer tokens that are demoted.
        skip: first answer tokens that are never demoted.
        top: rank whose logit a demoted token gets; at most V.

    Returns:
        (B,) nats per token, ≥ 0. z₀ = (ln 3, 0), y the first token, top 2: the target is (½, ½), and π = (¾, ¼) has the loss
        ½ ln(4/3) ≈ 0.1438.

    Source: arXiv:2605.07482, logit demotion.
    """
    theirs = reference_logits.detach()
    logps = theirs.gather(-1, tokens[..., None]).squeeze(-1) - theirs.logsumexp(-1)
    demoted = surprising(logps, mask, share=share, skip=skip)
    low = theirs.topk(min(top, theirs.shape[-1]), dim=-1).values[..., -1:]
    own = theirs.gather(-1, tokens[..., None])
    target = theirs.scatter(-1, tokens[..., None], torch.where(demoted[..., None], torch.minimum(own, low), own))
    return mean_over_answer(kl_divergence(target, logits), mask)


@dataclass(frozen=True)
class Shred(Method):
    """SHRED. It needs no retain rows: the positions that are not demoted hold the reference's distribution.

    Attributes:
        share: share of an answer's tokens that are demoted, the least likely first. The abstract gives no value; 0.5 is ours.
        skip: first answer tokens that are never demoted.
        top: rank whose logit a demoted token gets. The abstract gives no value; 64 is ours.
    """

    share: float = 0.5
    skip: int = 1
    top: int = 64

    needs: ClassVar[Needs] = Needs(logits=True, reference_logits=True)
    paper: ClassVar[str] = "arXiv:2605.07482"

    def __post_init__(self) -> None:
        check_number("shred", "skip", self.skip, at_least=0)
        check_number("shred", "top", self.top, at_least=2)
        if not 0 < self.share <= 1:
            raise ValueError(f"shred: share is {self.share}; it must be above 0 and at most 1")

    def forget_loss(self, forget: AnswerScores) -> Tensor:
        """(B,) divergence from the target on each forget answer."""
        logits = needed(forget.logits, "shred", "the policy's logits")
        reference = needed(forget.reference_logits, "shred", "the reference's logits")
        how = {"share": self.share, "skip": int(self.skip), "top": int(self.top)}
        return shred_loss(logits, reference, forget.tokens, forget.mask, **how)  # type: ignore[arg-type]
