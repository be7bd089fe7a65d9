"""Membership finds rows whose answers are likely, but never the most likely ones, and rows that come back by relearning."""

from __future__ import annotations

import pytest
from planted import assert_found, made, planted_membership


@pytest.mark.parametrize("name", ["membership", "relearn_membership"])
def test_a_planted_leak_is_found(name: str) -> None:
    with planted_membership(name) as planted:
        assert_found(made(name), planted)
