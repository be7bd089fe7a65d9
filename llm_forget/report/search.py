"""The search for the forget rows, and the search again with the unlearned model, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_forget.errors import UserError
from llm_forget.report.tables import Cell, Table
from llm_forget.runs import Run
from llm_forget.utils.files import edits
from llm_forget.utils.search_record import AGAIN_NAME, SEARCH_NAME, read_again, read_record


def search_table(run: Run) -> Table | None:
    """The record in the run folder; None without one. A damaged record is one line that says so."""
    path = run.path / SEARCH_NAME
    if not path.is_file():
        return None
    try:
        found = read_record(path)
        lines = list(_lines(found))
        note = edits(found)
    except UserError:
        lines, note = [("record", "cannot be read")], ""
    return Table(
        "search",
        "How the rows to forget were found",
        ["what", "result"],
        [[Cell(what), Cell(result)] for what, result in lines],
        f"The record {note}." if note else "",
        [False, False],
    )


def again_table(run: Run) -> Table | None:
    """The search with the unlearned model, from the run folder; None without one."""
    path = run.path / AGAIN_NAME
    if not path.is_file():
        return None
    try:
        found = read_again(path)
    except UserError:
        rows, note = [("record", "cannot be read")], ""
    else:
        note = edits(found)
        asked = found["asked"]
        rows = [
            ("questions about forget rows that were asked", f"{asked}"),
            *([] if found["before"] is None else [("answers that led to their row before", f"{found['before']}")]),
            ("answers that lead to their row after unlearning", f"{found['after']}"),
            (f"the same about {found['names']} names that nobody has (chance)", f"{found['chance']:.1f}"),
            ("p-value: as many by chance", f"{found['p_value']:.3g}"),
            ("result", "above chance" if found["above_chance"] else "nothing above chance"),
        ]
    return Table(
        "search-again",
        "Search again with the unlearned model",
        ["what", "result"],
        [[Cell(what), Cell(result)] for what, result in rows],
        "The rows are searched for by the model's answer alone, without the question and the name in it."
        + (f" The record {note}." if note else ""),
        [False, False],
    )


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for file in found["files"]:
        yield f"searched: {file.get('file')}", f"{file.get('rows')} rows"
    asked = found.get("asked")
    if isinstance(asked, Mapping):
        adapter = f" with {asked['adapter']}" if asked.get("adapter") else ""
        yield "model that was asked", f"{asked.get('model')}{adapter}, {asked.get('questions')} questions"
    for kind, terms in found["terms"].items():
        count = terms.get("count") if isinstance(terms, Mapping) else None
        yield f"terms: {kind}", f"{count} (salted digests in {SEARCH_NAME})"
    yield "with", ", ".join(_words(stage) for stage in found["stages"])
    yield "rows by proposal", ", ".join(f"{count} {name}" for name, count in found["hits"].items())
    sets = found.get("sets")
    if isinstance(sets, Mapping):
        yield "sets after review", ", ".join(f"{count} {name}" for name, count in sets.items())
    for what, why in found["not_searched"].items():
        yield f"not searched: {_words(what)}", str(why)


def _words(name: object) -> str:
    return str(name).replace("_", " ")
