"""What a search finds: evidence from the stages, and ranked rows with their reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from llm_forget.find.record import Searched

Decision = Literal["keep", "drop", "unsure"]
# A score is an estimate of the share of rows with the same evidence that belong to what was asked for.
KEEP, UNSURE = 0.5, 0.2


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why one stage takes a row for a hit.

    Attributes:
        row: number of the row in the corpus, from 0.
        reason: a few words of ours, such as ``name`` or ``near copy``; never text of the data.
        score: estimated precision of this evidence alone, in [0, 1].
        group: which of several people or records the row belongs to, if the stage can tell.
    """

    row: int
    reason: str
    score: float
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found.

    Attributes:
        file: its file, as the user named it.
        line: its line; in files without lines (a JSON list, Parquet) its number, from 1.
        score: between 0 and 1; estimated probability that the row belongs to what was asked for.
        reasons: why, the strongest first.
        decision: ``keep`` from ``KEEP``, ``unsure`` from ``UNSURE``, else ``drop``: a proposal for the review file.
        group: number of the person or record among several of one name, from 1; None for a single one.
        row: number of the row in the corpus, from 0.
    """

    file: str
    line: int
    score: float
    reasons: tuple[str, ...]
    decision: Decision
    group: int | None = None
    row: int = field(default=-1, repr=False)


def decide(score: float) -> Decision:
    """The proposal for a score."""
    return "keep" if score >= KEEP else "unsure" if score >= UNSURE else "drop"


def combined(scores: Iterable[float]) -> float:
    """The score of independent pieces of evidence together: 1 − Π(1 − s). Values 0.5 and 0.6 give 0.8."""
    left = 1.0
    for score in scores:
        left *= 1 - min(max(score, 0.0), 1.0)
    return 1 - left


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        hits: best first.
        searched: what was searched, with what, and what was not. Holds no text of the data.
        notes: lines for the user; may hold names that the user gave.
        answer: the model's own answer to the question that was asked, else None.
        people: the names that the search took an answer or rows to be about.
    """

    hits: tuple[Hit, ...]
    searched: Searched
    notes: tuple[str, ...] = ()
    answer: str | None = field(default=None, repr=False)
    people: tuple[str, ...] = field(default=(), repr=False)

    def kept(self) -> list[Hit]:
        """The hits that are proposed to be forgotten."""
        return [hit for hit in self.hits if hit.decision == "keep"]

    def frame(self) -> pd.DataFrame:
        """The hits as a table with the columns ``file``, ``line``, ``score``, ``reasons``, ``decision`` and ``group``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from llm_forget.utils.extras import require_extra

        require_extra("pandas", "a table of the rows that were found", "report")
        import pandas as pd

        columns = ["file", "line", "score", "reasons", "decision", "group"]
        frame = pd.DataFrame([{name: getattr(hit, name) for name in columns} for hit in self.hits], columns=columns)
        frame.attrs["searched"] = self.searched.as_dict()
        frame.attrs["notes"] = list(self.notes)
        return frame


def as_rows(hits: Sequence[Hit]) -> list[Mapping[str, Any]]:
    """The hits for JSON."""
    return [
        {
            "file": hit.file,
            "line": hit.line,
            "score": round(hit.score, 4),
            "reasons": list(hit.reasons),
            "decision": hit.decision,
            "group": hit.group,
        }
        for hit in hits
    ]
