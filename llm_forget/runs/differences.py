"""What keeps runs from being compared: other sets, another way of asking, or one model measured twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.evaluation.results import StoredResults
from llm_forget.utils.files import content_digest

if TYPE_CHECKING:
    from llm_forget.runs.load import Run

_MOST_NAMES = 4


def differences(runs: Sequence[Run], roles: Mapping[Path, str], suite: str | None) -> list[str]:
    """Notes on runs that were not measured alike.

    Args:
        runs: the runs to compare.
        roles: path of a run → its role.
        suite: the suite whose metrics are compared.
    """
    measured = {run.name: run.evaluations[suite] for run in runs if suite in run.evaluations}
    role_of = {run.name: roles[run.path] for run in runs}
    return [*_other_sets(measured), *_other_encoding(measured), *_same_weights(measured, role_of), *_other_base(runs)]


def _other_sets(measured: Mapping[str, StoredResults]) -> Iterator[str]:
    for part in dict.fromkeys(name for stored in measured.values() for name in stored.digests):
        digests = {name: stored.digests[part] for name, stored in measured.items() if part in stored.digests}
        yield from _told(digests, f"the {part} set has other examples", "its numbers cannot be compared")


def _other_encoding(measured: Mapping[str, StoredResults]) -> Iterator[str]:
    settings = {
        name: content_digest({"encoding": stored.raw["settings"].get("encoding")}) for name, stored in measured.items()
    }
    yield from _told(settings, "questions were encoded in another way", "the numbers cannot be compared")


def _other_base(runs: Sequence[Run]) -> Iterator[str]:
    digests = {run.name: run.result["base_digest"] for run in runs if run.result.get("base_digest")}
    yield from _told(digests, "the base model is another one", "the runs did not start from the same weights")


def _same_weights(measured: Mapping[str, StoredResults], roles: Mapping[str, str]) -> Iterator[str]:
    weights = {name: (stored.raw.get("model") or {}).get("weights") for name, stored in measured.items()}
    for same in _groups({name: digest for name, digest in weights.items() if digest}):
        if len(same) > 1 and any(roles[name] == "unlearned" for name in same):
            yield f"{_list(same)} are results of the same weights: was one of them evaluated without its adapter?"


def _told(values: Mapping[str, Hashable], what: str, so: str) -> Iterator[str]:
    groups = _groups(values)
    if len(groups) > 1:
        sides = " than in ".join(_list(group) for group in groups[:2])
        more = f", and {len(groups) - 2} more differ" if len(groups) > 2 else ""
        yield f"{what} in {sides}{more}: {so}"


def _groups(values: Mapping[str, Hashable]) -> list[list[str]]:
    """Names with the same value, the smallest group first."""
    groups: dict[Hashable, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return sorted(groups.values(), key=len)


def _list(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
