"""Number of Hypothesis examples; the profiles are in tests/conftest.py."""

from __future__ import annotations

from hypothesis import settings


def examples(full: int) -> int:
    """Return ``max_examples`` of a long property test: ``full`` in the profile full, a quarter in the profile fast."""
    return max(1, full * settings().max_examples // 100)
