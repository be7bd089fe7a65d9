"""Front and dominated area by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("optuna", reason="pip install 'llm-forget[search]'")
from llm_forget.trials.front import dominators, front, hypervolume


def test_by_hand() -> None:
    """(1, 2), (2, 1) and, dominated, (2, 2) and (1, 3): 1 · 1 + 2 · 1 … = 3 of the square to (3, 3)."""
    points = [(2.0, 2.0), (1.0, 2.0), (2.0, 1.0), (1.0, 3.0), (2.0, 1.0)]
    assert front(points) == [1, 2]
    assert hypervolume(points, (3.0, 3.0)) == pytest.approx(3.0)
    assert hypervolume([(4.0, 0.0)], (3.0, 3.0)) == 0
    assert dominators((2.0, 2.0), points) == 3
    assert dominators((1.0, 2.0), points) == 0
