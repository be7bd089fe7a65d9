"""A recipe as YAML with comments: what each field does, what was found, and what is missing."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llm_forget.cli.options import comments
from llm_forget.forgetting.work import Work, told
from llm_forget.utils.terminal import clean

_WIDTH = 110
# Shown even where they have the default, because they are what people change.
_SHOWN = {
    "name", "path", "rank", "alpha", "target_modules", "inputs", "top_share", "epochs", "batch_size",
    "gradient_accumulation", "learning_rate", "schedule", "gradient_checkpointing", "forget_target", "utility_floor",
    "neighbour_floor", "every", "rows", "patience", "system_prompt", "max_length", "weight", "more", "seed", "base",
}  # fmt: skip


def recipe_file(work: Work, file: Path) -> str:
    """The text of a recipe for some work; ``load_recipe`` reads it as ``work.recipe``, without ``resume``.

    Args:
        work: the work.
        file: the file that it will be written to, for the command in its header.
    """
    lines = [
        "What `llm-forget forget` would run, to edit.",
        "",
        f"  llm-forget unlearn --config {file}",
        "",
        *(line for line in told(work) if not line.startswith("writes")),
    ]
    head = [f"# {clean(line, lines=False)}".rstrip() for line in lines]
    recipe = replace(work.recipe, resume=False, output_dir=f"runs/{file.stem}")
    return "\n".join([*head, "", *_section(recipe, "")]) + "\n"


def _section(value: Any, indent: str) -> Iterator[str]:
    """The fields of a dataclass, each below its comment."""
    meanings = comments(type(value))
    for item in fields(value):
        given = getattr(value, item.name)
        if item.name not in _SHOWN and _is_default(item, given) and not _holds_shown(given):
            continue
        nested = is_dataclass(given)
        meaning = meanings.get(item.name) or (" ".join(str(inspect.getdoc(given)).split()) if nested else "")
        yield from textwrap.wrap(meaning, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if nested:
            yield f"{indent}{item.name}:"
            yield from _section(given, indent + "  ")
        else:
            text = yaml.safe_dump({item.name: given}, sort_keys=False, allow_unicode=True, width=_WIDTH)
            yield from (indent + line for line in text.rstrip("\n").split("\n"))
        if not indent:
            yield ""


def _is_default(item: Field[Any], value: Any) -> bool:
    default = item.default if item.default_factory is MISSING else item.default_factory()
    return default is not MISSING and bool(value == default)


def _holds_shown(value: Any) -> bool:
    return is_dataclass(value) and any(one.name in _SHOWN for one in fields(value))
