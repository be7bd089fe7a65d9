"""The review file: the hits of a search with a decision each, which somebody changes before the rows are forgotten.

It is JSON lines, or a table if its name ends in ``.csv``. It holds text of the rows, so it is written only where it is asked for.
The record of the search is next to it. It names the files and their digests and holds no text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llm_forget.data.readers import read_file
from llm_forget.errors import DataError, UserError
from llm_forget.find.corpus import Corpus
from llm_forget.find.hits import Decision, Found
from llm_forget.find.sources import Place
from llm_forget.utils.files import write_record, write_text
from llm_forget.utils.search_record import read_record

DECISIONS = ("keep", "drop", "unsure")
_COLUMNS = ("decision", "score", "reasons", "group", "file", "line", "text")
_MOST_TEXT = 2_000  # characters of a row
_MOST_DROPPED = 100  # rows with the proposal drop


@dataclass(frozen=True)
class Review:
    """What somebody decided.

    Attributes:
        decisions: place → decision. A row that is not in it was no hit, and is kept in training.
        record: the record of the search; empty if there is none.
    """

    decisions: Mapping[Place, Decision]
    record: Mapping[str, Any]


def record_file(path: Path) -> Path:
    """The record that belongs to a review file: ``review.record.json`` for ``review.jsonl``."""
    return path.with_suffix(".record.json")


def write_review(path: Path, found: Found, corpus: Corpus) -> None:
    """Write the hits with their text, best first, and the record of the search in a file next to them.

    Args:
        path: the file; a table for ``.csv``, else JSON lines.
        found: the result of the search.
        corpus: the rows that were searched.

    Raises:
        UserError: the file exists, since it may hold somebody's decisions, or it cannot be written.
    """
    for one in (path, record_file(path)):
        if one.exists():
            raise UserError(f"--review: {one} already exists and may hold decisions; give another name, or remove it")
    rows: list[dict[str, Any]] = []
    dropped = 0
    for hit in found.hits:
        dropped += hit.decision == "drop"
        if hit.decision == "drop" and dropped > _MOST_DROPPED:
            continue
        text = corpus.text(hit.row)
        values = {
            "decision": hit.decision,
            "score": round(hit.score, 4),
            "reasons": ", ".join(hit.reasons),
            "group": hit.group,
            "file": hit.file,
            "line": hit.line,
            "text": text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " …",
        }
        rows.append({name: values[name] for name in _COLUMNS})
    if path.suffix.lower() == ".csv":
        content = io.StringIO(newline="")
        table = csv.DictWriter(content, _COLUMNS)
        table.writeheader()
        table.writerows(rows)
        write_text(path, content.getvalue())
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_record(record_file(path), found.searched.as_dict())


def read_review(path: Path) -> Review:
    """Read a review file and the record next to it.

    Raises:
        DataError: it does not exist, or an entry has no place or an unknown decision; entries are named, without their text.
    """
    if not path.is_file():
        raise DataError(
            f"--review: {path} does not exist; write it first: llm-forget find --data … --person … --review {path}"
        )
    decisions: dict[Place, Decision] = {}
    problems: list[str] = []
    for row in read_file(path, str(path)):
        values = row.values
        decision = str(values.get("decision") or "").strip().casefold()
        try:
            place = Place(str(values["file"]), int(str(values["line"])))
        except (KeyError, ValueError):
            problems.append(
                f"{row.source}: {row.problem or 'has no file and line: leave them as the search wrote them'}"
            )
            continue
        if decision not in DECISIONS:
            problems.append(f"{row.source}: the decision is none of {', '.join(DECISIONS)}")
        elif decisions.get(place, decision) != decision:
            problems.append(f"{row.source}: the row has another decision further up")
        else:
            decisions[place] = cast(Decision, decision)
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise DataError(f"{path}: {len(problems)} entries cannot be used\n  " + "\n  ".join(problems[:10]) + more)
    record = record_file(path)
    return Review(decisions, read_record(record) if record.is_file() else {})


def check_unchanged(corpus: Corpus, record: Mapping[str, Any]) -> None:
    """Check that the files are those that were searched.

    Raises:
        DataError: a file was changed after the search, so that lines may mean other rows.
    """
    before = {
        str(file.get("file")): file.get("sha256") for file in record.get("files", ()) if isinstance(file, Mapping)
    }
    for file in corpus.files:
        if file.file in before and before[file.file] != file.digest:
            raise DataError(
                f"{file.file} has changed since the search, so the lines of the review may be other rows: search again"
            )
