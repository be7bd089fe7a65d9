"""What there is: methods, retain terms and wrappers with their source, needs, cost and recipe, read from the files themselves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_forget.methods import Needs
from llm_forget.train.step_rows import StepRows
from llm_forget.utils.plugins import find_class, names_in
from llm_forget.utils.shipped import shipped

# Forwards of one row: the policy's backward costs about two more. Gradient difference is the unit: forget and retain row.
_TRAINED_ROW, _REFERENCE_ROW, _UNIT = 3.0, 1.0, 6.0


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: as in a recipe.
        summary: what it does, in a sentence.
        retain: its own retain term, or "none".
        needs: what it reads beyond the policy's log-probs, its retain term included.
        cost: of a step, relative to gradient difference.
        paper: where it comes from.
        recipe: the shipped recipe to copy, or "" where there is none.
    """

    name: str
    summary: str
    retain: str
    needs: tuple[str, ...]
    cost: float
    paper: str
    recipe: str


def relative_cost(rows: StepRows) -> float:
    """The work of a step relative to gradient difference, which trains on one forget row and one retain row.

    A forward pass counts 1 and a backward pass 2. A scored alternative answer is one more trained row. Each group of rows that
    the reference sees costs one more forward pass. Work that is done once before training does not count: the reference's
    log-probs, and answers that the model writes. Embeddings, head and optimizer are left out.
    """
    reference = sum(group.reference for group in rows.groups)
    return (_TRAINED_ROW * len(rows.groups) + _REFERENCE_ROW * reference) / _UNIT


def method_entries() -> list[Entry]:
    """All methods that come with the package, by name."""
    return [_entry(name) for name in names_in("llm_forget.methods")]


def _entry(name: str) -> Entry:
    cls: Any = find_class("llm_forget.methods", name, "forget_loss")
    needs: Needs = cls().needs
    term = cls.default_retain
    theirs: Needs | None = None if term is None else _needs_of_term(term)
    more = ["reference forward (retain)"] if theirs is not None and theirs.reference_forward else []
    recipe = f"recipes/demo/{name}.yaml"
    return Entry(
        name=name,
        summary=_summary(f"llm_forget.methods.{name}"),
        retain=term or "none",
        needs=(*_in_words(needs), *more),
        cost=relative_cost(StepRows(needs, theirs)),
        paper=cls.paper,
        recipe=recipe if shipped(recipe).is_file() else "",
    )


def _needs_of_term(name: str) -> Needs:
    term: Any = find_class("llm_forget.retain", name, "retain_loss")
    needs: Needs = term().needs
    return needs


def _in_words(needs: Needs) -> list[str]:
    """What costs something, or has to be given."""
    found = []
    if needs.reference_logps:
        found.append("reference log-probs (once)")
    if needs.reference_forward:
        found.append("reference forward")
    if needs.any_alternative:
        found.append("another answer")
    if needs.hidden:
        found.append("hidden states")
    return found


def _summary(module: str) -> str:
    text = (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).rstrip(".")


def methods_table(entries: Sequence[Entry]) -> str:
    """The README's table, in Markdown."""
    lines = ["| name | what it does | retain | needs | cost | source |", "|---|---|---|---|---|---|"]
    for entry in entries:
        needs = ", ".join(entry.needs) or "–"
        summary = entry.summary.partition(": ")[2] or entry.summary
        lines.append(
            f"| `{entry.name}` | {summary} | {entry.retain} | {needs} | {entry.cost:.2f} | {_short(entry.paper)} |"
        )
    return "\n".join(lines) + "\n"


def _short(paper: str) -> str:
    """The arXiv numbers alone, for a narrow column."""
    return ", ".join(part.strip(" ;,") for part in paper.split("arXiv:")[1:] for part in [part.split(";")[0]])


def wrapper_entries() -> list[tuple[str, str, str, str]]:
    """Name, summary, what it adds to a step and source of every wrapper."""
    found = []
    for name in names_in("llm_forget.wrappers"):
        cls: Any = find_class("llm_forget.wrappers", name, "on_gradient")
        found.append((name, _summary(f"llm_forget.wrappers.{name}"), cls.cost, cls.paper))
    return found
