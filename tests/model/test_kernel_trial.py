"""Test the comparison of a faster way with the usual one."""

from __future__ import annotations

import math

import pytest
import torch

from llm_forget.model.kernel_trial import Difference, agrees, relative_difference


@pytest.mark.parametrize(
    ("found", "used", "note"),
    [
        ([], True, None),
        ([(0.1, 0.1, "nats"), (0.0, 0.0, "of a gradient")], True, None),
        ([(0.1, 0.1, "nats"), (0.3, 0.2, "of a gradient")], False, "a kernel differs by 0.3 of a gradient; no kernel"),
        ([(math.nan, 1.0, "nats")], False, "a kernel differs by nan nats; no kernel"),
    ],
)
def test_every_difference_has_its_own_limit(found: list[Difference], used: bool, note: str | None) -> None:
    said: list[str] = []
    assert agrees("a kernel", "no kernel", lambda: found, said.append) is used
    assert said == ([] if note is None else [note])


def test_an_error_is_a_note_and_missing_memory_is_not() -> None:
    said: list[str] = []

    def ends(error: Exception) -> list[Difference]:
        raise error

    assert not agrees("a kernel", "no kernel", lambda: ends(ValueError("the row of Ada")), said.append)
    assert said == ["a kernel cannot be used (ValueError); no kernel"], "the error's own text may quote a row"
    with pytest.raises(torch.OutOfMemoryError):
        agrees("a kernel", "no kernel", lambda: ends(torch.OutOfMemoryError()), said.append)


def test_the_relative_difference_is_that_of_the_worst_tensor() -> None:
    usual = [torch.tensor([4.0, -8.0]), torch.tensor([1.0])]
    assert relative_difference([torch.tensor([4.0, -8.0]), torch.tensor([1.0])], usual) == 0
    assert relative_difference([torch.tensor([4.0, -7.0]), torch.tensor([1.25])], usual) == 0.25
    with pytest.raises(ValueError, match="zip"):
        relative_difference(usual[:1], usual)
