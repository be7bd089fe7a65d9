"""The search record: what was searched, with what, hits and misses, and what was not searched. It holds no text."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_forget._version import __version__

if TYPE_CHECKING:
    from llm_forget.find.corpus import Corpus
    from llm_forget.find.hits import Hit
    from llm_forget.find.query import Query

_SALT_BYTES = 16


@dataclass(frozen=True)
class Searched:
    """What a search did.

    Attributes:
        files: per file its path, rows, SHA-256 and the lines that could not be read.
        terms: per kind of term how many were given, and a salted digest of each. Who knows a term can check that it was searched;
            short terms can be guessed by trying, so the record is no public document.
        salt: hexadecimal, random for every search.
        stages: the stages that ran.
        not_searched: stage or file → why it was not searched.
        hits: number of rows by decision.
        reasons: number of rows by reason.
        asked: the model whose answers were searched for: ``model``, ``adapter`` and the number of ``questions``.
    """

    files: tuple[Mapping[str, Any], ...]
    terms: Mapping[str, Sequence[str]]
    salt: str
    stages: tuple[str, ...]
    not_searched: Mapping[str, str]
    hits: Mapping[str, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows that were searched."""
        return sum(file["rows"] for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """The record for JSON."""
        return {
            "llm_forget": __version__,
            "files": [dict(file) for file in self.files],
            "rows": self.rows,
            "terms": {kind: {"count": len(values), "digests": list(values)} for kind, values in self.terms.items()},
            "salt": self.salt,
            "stages": list(self.stages),
            "not_searched": dict(self.not_searched),
            "hits": dict(self.hits),
            "reasons": dict(self.reasons),
            **({"asked": dict(self.asked)} if self.asked else {}),
        }


def term_digest(term: str, salt: str) -> str:
    """The digest of a term in a record: the first 16 hex digits of SHA-256 over salt and term in lower case."""
    folded = " ".join(term.casefold().split())
    return hashlib.sha256(f"{salt}\n{folded}".encode("utf-8", "replace")).hexdigest()[:16]


def searched_with(
    corpus: Corpus, query: Query, stages: Sequence[str], skipped: Mapping[str, str], hits: Sequence[Hit]
) -> Searched:
    """The record of a search.

    Args:
        corpus: what was searched.
        query: with what.
        stages: the stages that ran.
        skipped: those that did not, and why.
        hits: what was found.
    """
    salt = secrets.token_hex(_SALT_BYTES)
    unreadable = {file.file: f"{len(file.unreadable)} rows cannot be read" for file in corpus.files if file.unreadable}
    reasons: dict[str, int] = {}
    for hit in hits:
        for reason in hit.reasons:
            reasons[reason] = reasons.get(reason, 0) + 1
    decisions = {name: sum(hit.decision == name for hit in hits) for name in ("keep", "unsure", "drop")}
    return Searched(
        files=tuple(
            {"file": one.file, "rows": one.rows, "sha256": one.digest, "unreadable": list(one.unreadable[:100])}
            for one in corpus.files
        ),
        terms={
            option.removeprefix("--"): [term_digest(value, salt) for value in values]
            for option, values in query.given().items()
            if values
        },
        salt=salt,
        stages=tuple(stages),
        not_searched={**skipped, **unreadable},
        hits={**decisions, "misses": len(corpus) - len(hits)},
        reasons=reasons,
    )
