"""Test the number of a process in a launch."""

from __future__ import annotations

import pytest

from llm_forget.utils.rank import process_rank


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"PMI_RANK": "2"}, 2),
        ({"RANK": "1", "OMPI_COMM_WORLD_RANK": "5"}, 1),
        ({"RANK": "x"}, 0),
    ],
)
def test_the_rank_comes_from_the_launcher(
    variables: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank


def test_a_process_group_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 4)
    assert process_rank() == 4
