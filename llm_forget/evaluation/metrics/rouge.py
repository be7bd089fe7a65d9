"""ROUGE: the overlap of the generated answer with the right answer, by words or by word order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats
from llm_forget.utils.extras import require_extra

Part = Literal["recall", "f1"]
Kind = Literal["rougeL", "rouge1"]


def rouge(references: Sequence[str], generated: Sequence[str], *, kind: Kind) -> tuple[Floats, Floats]:
    """Compute the overlap of stemmed words between each generated text and its reference.

    ``recall = shared / words of the reference``, ``precision = shared / words of the generated text``,
    ``F1 = 2 · precision · recall / (precision + recall)``. ``shared`` is the length of the longest common subsequence
    (``rougeL``) or the number of common words in any order (``rouge1``).

    Args:
        references: (E) the right answers.
        generated: (E) the model's answers.
        kind: ``rougeL`` or ``rouge1``.

    Returns:
        Recall and F1, (E,) each in [0, 1]. NaN for a reference in which ``rouge_score`` finds no word: it reads only a–z and
        0–9, so an answer in another script would score 0 and look forgotten. The reference "the cat sat" and the answer
        "the cat" give recall ⅔ and F1 0.8 for both kinds.

    Raises:
        UserError: ``rouge_score`` is not installed.

    Source: Lin 2004, "ROUGE"; recall as in TOFU (arXiv:2401.06121), F1 as in MUSE (arXiv:2407.06460).
    """
    scorer = _scorer(kind)
    recall, f1 = np.full(len(references), np.nan), np.full(len(references), np.nan)
    for index, (reference, text) in enumerate(zip(references, generated, strict=True)):
        if scorer._tokenizer.tokenize(reference):
            score = scorer.score(reference, text)[kind]
            recall[index], f1[index] = score.recall, score.fmeasure
    return recall, f1


def _scorer(kind: Kind) -> Any:
    require_extra("rouge_score", "ROUGE", "eval")
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)


@dataclass(frozen=True)
class Rouge:
    """ROUGE of the greedy answer.

    Attributes:
        part: recall (TOFU) or f1 (MUSE).
        kind: rougeL, which depends on the word order, or rouge1, which does not.
    """

    part: Part = "recall"
    kind: Kind = "rougeL"

    paper: ClassVar[str] = "Lin 2004, ROUGE; Maini et al. 2024, arXiv:2401.06121; Shi et al. 2024, arXiv:2407.06460"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("generated",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return f"{self.kind}_{self.part}"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) score of each generated answer."""
        if known.generated is None or known.references is None:
            return np.full(len(known.answer), np.nan)
        recall, f1 = rouge(known.references, known.generated, kind=self.kind)
        return recall if self.part == "recall" else f1
