"""Compare a faster way to compute something with the usual one before a run relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Difference = tuple[float, float, str]  # the difference found, the largest one allowed, and its unit


def agrees(way: str, instead: str, differences: Callable[[], Iterable[Difference]], say: Callable[[str], None]) -> bool:
    """Whether a faster way gives the numbers of the usual one. It may fail for many reasons, and the usual way needs none of it.

    Args:
        way: its name, for the notes.
        instead: what happens without it, for the notes.
        differences: measures how far its numbers are from the usual ones; NaN does not agree.
        say: called with a note if the numbers or an error forbid it.

    Raises:
        torch.OutOfMemoryError: the trial ran out of memory, which the usual way would hardly survive.
    """
    try:
        found = list(differences())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say(failed(way, instead, error))
        return False
    for moved, most, unit in found:
        if not moved <= most:
            say(f"{way} differs by {moved:.1g} {unit}; {instead}")
            return False
    return True


def failed(way: str, instead: str, error: Exception) -> str:
    """The note about a way that ends in an error."""
    return f"{way} cannot be used ({type(error).__name__}); {instead}"


def relative_difference(found: Iterable[Tensor], usual: Iterable[Tensor]) -> float:
    """The largest difference between two lists of tensors, each as a share of the largest number of the usual one."""
    return max(
        float((one.double() - two.double()).abs().max() / two.double().abs().max().clamp(min=1e-30))
        for one, two in zip(found, usual, strict=True)
    )
