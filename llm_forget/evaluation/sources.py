"""Fill in a suite's variables, and read its sets from the hub or from a local folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_forget.data.examples import DataSource
from llm_forget.data.sources import resolve_sources
from llm_forget.errors import RecipeError

if TYPE_CHECKING:
    from llm_forget.evaluation.sets import SetConfig


# A pair of braces, a variable, or a brace without its partner.
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def with_data(
    name: str, sets: Mapping[str, SetConfig], data_dir: str | None, variables: Mapping[str, str]
) -> tuple[dict[str, SetConfig], list[str]]:
    """Fill in a suite's variables and resolve the sources of its sets.

    Args:
        name: the suite's name, for messages.
        sets: the sets as the suite defines them.
        data_dir: the folder with each source's ``file``; None reads from ``path``, usually the hub.
        variables: values for ``{variable}`` in paths, files, configurations and splits.

    Returns:
        The sets, and one note for each optional set that was left out because its file does not exist.

    Raises:
        RecipeError: a variable has no value, the folder does not exist, or files are missing (all are listed).
    """
    filled = {one: _fill_set(config, variables, f"{name}, sets.{one}") for one, config in sets.items()}
    sources = {one: [config.data, *([config.shots] if config.shots else [])] for one, config in filled.items()}
    resolved, left_out = resolve_sources(sources, data_dir, name)
    found = {
        one: replace(filled[one], data=data, shots=shots[0] if shots else None)
        for one, (data, *shots) in resolved.items()
    }
    return found, left_out


def fill(text: str, variables: Mapping[str, str], where: str) -> str:
    """Replace each ``{variable}`` in a text; ``{{`` and ``}}`` are braces. Attributes and formats are not known.

    Raises:
        RecipeError: a variable has no value.
    """

    def value(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        if found[1] not in variables:
            known = ", ".join(variables) or "none"
            raise RecipeError(
                f"{where}: a variable in {text} has no value ({found[0]}); the suite's variables are: {known}"
            )
        return variables[found[1]]

    return _FIELD.sub(value, text)


def _fill_set(config: SetConfig, variables: Mapping[str, str], where: str) -> SetConfig:
    if not variables:
        return config
    shots = None if config.shots is None else _fill_source(config.shots, variables, where)
    return replace(config, data=_fill_source(config.data, variables, where), shots=shots)


def _fill_source(source: DataSource, variables: Mapping[str, str], where: str) -> DataSource:
    def one(text: str | None) -> str | None:
        return None if text is None else fill(text, variables, where)

    return replace(
        source,
        path=fill(source.path, variables, where),
        split=fill(source.split, variables, where),
        name=one(source.name),
        file=one(source.file),
    )
