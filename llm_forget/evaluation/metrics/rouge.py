"""ROUGE-L: how much of the right answer stands, in its order, in what the model says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from llm_forget.errors import UserError
from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.score import Floats

Part = Literal["recall", "f1"]


def rouge_l(references: Sequence[str], generated: Sequence[str]) -> tuple[Floats, Floats]:
    """Longest common subsequence of words, stemmed, against the reference.

    ``recall = LCS / words of the reference``, ``precision = LCS / words of the generated text``,
    ``F1 = 2 · precision · recall / (precision + recall)``.

    Args:
        references: (E) the right answers.
        generated: (E) what the model said.

    Returns:
        Recall and F1, (E,) each in [0, 1]. NaN for a reference in which ``rouge_score`` finds no word: it knows only
        a–z and 0–9, so that an answer in another script would score 0 and look forgotten. "the cat sat" against "the
        cat" has recall ⅔ and F1 0.8.

    Raises:
        UserError: ``rouge_score`` is not installed.

    Source: Lin 2004, "ROUGE"; recall as in TOFU (arXiv:2401.06121), F1 as in MUSE (arXiv:2407.06460).
    """
    scorer = _scorer()
    recall, f1 = np.full(len(references), np.nan), np.full(len(references), np.nan)
    for index, (reference, text) in enumerate(zip(references, generated, strict=True)):
        if scorer._tokenizer.tokenize(reference):
            score = scorer.score(reference, text)["rougeL"]
            recall[index], f1[index] = score.recall, score.fmeasure
    return recall, f1


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError("ROUGE needs the rouge_score package: pip install llm-forget[eval]") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


@dataclass(frozen=True)
class Rouge:
    """ROUGE-L of the greedy answer.

    Attributes:
        part: recall (TOFU) or f1 (MUSE).
    """

    part: Part = "recall"

    paper: ClassVar[str] = "Lin 2004, ROUGE; Maini et al. 2024, arXiv:2401.06121; Shi et al. 2024, arXiv:2407.06460"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("generated",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return f"rougeL_{self.part}"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) score of each generated answer."""
        if known.generated is None or known.references is None:
            return np.full(len(known.answer), np.nan)
        recall, f1 = rouge_l(known.references, known.generated)
        return recall if self.part == "recall" else f1
