"""The catalogue of methods and wrappers: source, needs, cost and recipe, read from the files themselves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from llm_forget.errors import UserError
from llm_forget.methods import Needs
from llm_forget.train.step_rows import StepRows
from llm_forget.utils.plugins import find_class, names_in
from llm_forget.utils.shipped import shipped

TABLE_BEGINS, TABLE_ENDS = "<!-- llm-forget methods --markdown -->\n", "<!-- end -->"
# In forward passes of one row; a backward pass costs about two. The unit is gradient difference: a forget and a retain row.
_TRAINED_ROW, _REFERENCE_ROW, _UNIT = 3.0, 1.0, 6.0


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: the name in a recipe.
        summary: one sentence, from the file's docstring.
        retain: the method's default retain term, or "none".
        needs: what method and retain term read in addition to the policy's log-probs.
        cost: work of a training step relative to gradient difference.
        paper: the source.
        recipe: path of the first shipped recipe that uses the method, or "" if none does.
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
    """All methods of the package, sorted by name."""
    recipes = _recipes()
    return [_entry(name, recipes.get(name, "")) for name in names_in("llm_forget.methods")]


def _recipes() -> dict[str, str]:
    """The first shipped recipe of each method by path; the recipe's content names the method, not the file name."""
    folder = shipped("recipes")
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        method = values.get("method") if isinstance(values, dict) else None
        if isinstance(method, dict):
            found.setdefault(str(method.get("name")), f"recipes/{path.relative_to(folder).as_posix()}")
    return found


def _entry(name: str, recipe: str) -> Entry:
    cls: Any = find_class("llm_forget.methods", name, "forget_loss")
    needs: Needs = cls().needs
    term = cls.default_retain
    theirs: Needs | None = None if term is None else _needs_of_term(term)
    more = ["reference forward (retain)"] if theirs is not None and theirs.reference_forward else []
    return Entry(
        name=name,
        summary=_summary(f"llm_forget.methods.{name}"),
        retain=term or "none",
        needs=(*_in_words(needs), *more),
        cost=relative_cost(StepRows(needs, theirs)),
        paper=cls.paper,
        recipe=recipe,
    )


def _needs_of_term(name: str) -> Needs:
    term: Any = find_class("llm_forget.retain", name, "retain_loss")
    needs: Needs = term().needs
    return needs


def _in_words(needs: Needs) -> list[str]:
    """The needs that cost time or that a recipe must provide."""
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
    """A short Markdown table with one row per method; `llm-forget methods` shows all columns."""
    lines = ["| method | what it does | cost | paper |", "|---|---|---|---|"]
    for entry in entries:
        summary = entry.summary.partition(": ")[2] or entry.summary
        lines.append(f"| `{entry.name}` | {summary} | {entry.cost:.2f} | {_short(entry.paper)} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, table: str) -> str:
    """Replace the table between the two comments of a Markdown text.

    Raises:
        UserError: the text does not have the two comments.
    """
    before, begin, rest = text.partition(TABLE_BEGINS)
    _, end, after = rest.partition(TABLE_ENDS)
    if not begin or not end:
        raise UserError(
            f"the file has no table of methods; put the two lines {TABLE_BEGINS.strip()} and {TABLE_ENDS} where it belongs"
        )
    return before + begin + table + end + after


def _short(paper: str) -> str:
    """Only the arXiv numbers, for a narrow column."""
    return ", ".join(part.strip(" ;,") for part in paper.split("arXiv:")[1:] for part in [part.split(";")[0]])


def wrapper_entries() -> list[tuple[str, str, str, str]]:
    """Name, summary, added cost of a step and source of every wrapper."""
    found = []
    for name in names_in("llm_forget.wrappers"):
        cls: Any = find_class("llm_forget.wrappers", name, "on_gradient")
        found.append((name, _summary(f"llm_forget.wrappers.{name}"), cls.cost, cls.paper))
    return found
