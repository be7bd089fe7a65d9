"""Test what counts as improved, and that a run that failed is in the table."""

from __future__ import annotations

from typing import Any

import pytest
from sanitise_table import improved, table

LINE: dict[str, Any] = {
    "run": "npo", "digest": "d", "weight": 30.0, "forget before": 0.1, "forget after": 0.09, "retain before": 0.5,
    "retain after": 0.9, "neighbour before": 0.4, "neighbour after": 0.5, "strength": 8.0, "seconds": 3.2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"forget after": 0.11}, False),
        ({"neighbour after": 0.41}, False),
        ({"failed": "no strength"}, False),
    ],
)
def test_improved_means_better_neighbours_at_no_weaker_forgetting(change: dict[str, Any], wanted: bool) -> None:
    assert improved({**LINE, **change}) == wanted


def test_the_table_has_every_run() -> None:
    failed = {"run": "flat", "digest": "e", "weight": 30.0, "neighbour before": 0.2, "failed": "no strength"}
    lines = table([LINE, failed]).splitlines()
    assert lines[2].startswith("| flat | – | – | – | – | 0.200 | – | – | – | no |")
    assert lines[3].endswith("| 0.400 | 0.500 | 8 | 3 | yes |")
    assert lines[-1] == "1 of 2 improved."
