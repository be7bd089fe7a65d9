"""Zlib attack: the log-prob divided by the compressed size, so that simple text does not look like training data."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy.typing as npt

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats, as_floats


def zlib_scores(mean_logps: npt.ArrayLike, texts: Sequence[str]) -> Floats:
    """Compute ``mean log p / bytes of the compressed text``.

    Args:
        mean_logps: (E,) mean log-prob per answer token, in nats.
        texts: (E) the answers; encoded as UTF-8 and compressed with zlib at level 6.

    Returns:
        (E,) in (−∞, 0]; NaN stays NaN. A cross-entropy of 2 and a text of 20 compressed bytes give −0.1.

    Source: Carlini et al. 2021, arXiv:2012.07805, section 5.2; this form in Shi et al. 2024, arXiv:2310.16789.
    """
    return as_floats(mean_logps) / as_floats([compressed_bytes(text) for text in texts])


def compressed_bytes(text: str) -> int:
    """Size of a text in bytes, encoded as UTF-8 and compressed; at least 8, the size for an empty text."""
    return len(zlib.compress(text.encode("utf-8", "surrogatepass"), 6))


@dataclass(frozen=True)
class ZlibRatio:
    """Mean log-prob divided by compressed size."""

    paper: ClassVar[str] = "Carlini et al. 2021, arXiv:2012.07805"
    needs: ClassVar[tuple[Input, ...]] = ("tokens", "texts")

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "zlib"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in (−∞, 0]."""
        return zlib_scores(rows.tokens.mean_logps(), rows.texts or [])
