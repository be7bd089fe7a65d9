"""Zlib attack: likely, though it does not compress well; so it is not just simple text."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy.typing as npt

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats, as_floats


def zlib_scores(mean_logps: npt.ArrayLike, texts: Sequence[str]) -> Floats:
    """``mean log p / bytes of the compressed text``.

    Args:
        mean_logps: (E,) mean log-prob per answer token, nats.
        texts: (E) the answers; as UTF-8, compressed at zlib's level 6.

    Returns:
        (E,) in (−∞, 0]; NaN stays NaN. A cross-entropy of 2 over a text of 20 compressed bytes gives −0.1.

    Source: Carlini et al. 2021, arXiv:2012.07805, section 5.2; this form in Shi et al. 2024, arXiv:2310.16789.
    """
    return as_floats(mean_logps) / as_floats([compressed_bytes(text) for text in texts])


def compressed_bytes(text: str) -> int:
    """Bytes of a text, in UTF-8 and compressed: at least the 8 of an empty one."""
    return len(zlib.compress(text.encode("utf-8", "surrogatepass"), 6))


@dataclass(frozen=True)
class ZlibRatio:
    """Mean log-prob over compressed length."""

    paper: ClassVar[str] = "Carlini et al. 2021, arXiv:2012.07805"
    needs: ClassVar[tuple[Input, ...]] = ("tokens", "texts")

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "zlib"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in (−∞, 0]."""
        return zlib_scores(rows.tokens.mean_logps(), rows.texts or [])
