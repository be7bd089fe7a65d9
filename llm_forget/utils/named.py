"""Metrics and attacks as a suite names them: a name, or a mapping with a name and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_forget.errors import RecipeError
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class


def make_named(entries: Sequence[str | Mapping[str, Any]], package: str, function: str) -> list[Any]:
    """Make what a list of a suite names.

    Args:
        entries: names, or mappings with a ``name`` and the settings of what it names.
        package: where our own files of this kind lie, such as ``llm_forget.evaluation.metrics``.
        function: the method that its classes have.

    Raises:
        RecipeError: an unknown name or setting, or two of one label.
    """
    kind = package.rsplit(".", 1)[-1]
    made: list[Any] = []
    for entry in entries:
        values = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError(f"an entry of {kind} has no name; write a name, or {{name: NAME, setting: value}}")
        made.append(build(find_class(package, name, function), values, name))
    labels = [one.label for one in made]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise RecipeError(f"{kind} gives {', '.join(twice)} twice; leave one of each out")
    return made
