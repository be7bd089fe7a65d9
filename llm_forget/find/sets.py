"""From decisions to the files of a recipe: forget, retain, neighbours and holdout, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TextIO

from llm_forget.data.examples import DataSource, check_rows
from llm_forget.data.row import Row
from llm_forget.errors import DataError, UserError
from llm_forget.find.corpus import Corpus, top
from llm_forget.find.hits import Decision
from llm_forget.find.holdout import invented
from llm_forget.find.query import Query
from llm_forget.find.search import Search
from llm_forget.find.sources import Place, rows_of
from llm_forget.utils.files import new_file, write_record
from llm_forget.utils.search_record import SEARCH_NAME

SETS = ("forget", "retain", "neighbours", "holdout")
_SAMPLED = 200  # forget rows whose neighbours are looked up
_NEAREST = 10  # rows like each of them
_KEPT_SHARE = 5  # at most a fifth of the other rows become neighbours


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: where.
        counts: number of rows of each set, and of those that are unsure and in none.
        notes: lines for the user.
    """

    folder: Path
    counts: Mapping[str, int]
    notes: tuple[str, ...]


def write_sets(
    folder: Path,
    corpus: Corpus,
    decisions: Mapping[Place, Decision],
    record: Mapping[str, Any],
    *,
    holdout: Corpus | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Written:
    """Write the four sets and the record of the search.

    Rows with the decision keep are to be forgotten. Unsure rows are in no set. The neighbours are the other rows that are most
    like the forget rows; they are not in the retain set. All others are the retain set.

    Args:
        folder: the folder; created.
        corpus: the rows that were searched.
        decisions: place → decision.
        record: the record of the search.
        holdout: rows that the model was never trained on; those most like the forget rows are taken. Without it, holdout rows
            are made from neighbours, with names and numbers that are not in the data.
        columns: our field names → the files' column names. The sets have our names.
        seed: of the holdout rows that are made.

    Raises:
        UserError: a set exists in the folder, or it cannot be written.
        DataError: no row is to be forgotten, or a decision names a row that is not in the data.
    """
    for name in (*(f"{one}.jsonl" for one in SETS), SEARCH_NAME):
        if (folder / name).exists():
            raise UserError(f"--output_dir: {folder} already has {name}; give another folder, or remove it")
    found = {place: corpus.row_at(place) for place in decisions}
    missing = [place for place, row in found.items() if row is None]
    if missing:
        raise DataError(
            f"{len(missing)} rows of the review are not in the data (such as {missing[0].file}:{missing[0].line}): give the "
            "files that were searched with --data"
        )
    by = {
        name: {row for place, row in found.items() if decisions[place] == name and row is not None}
        for name in ("keep", "unsure")
    }
    if not by["keep"]:
        raise DataError("no row has the decision keep, so there is nothing to forget")
    taken = by["keep"] | by["unsure"]
    near = neighbours(corpus, sorted(by["keep"]), taken)
    notes: list[str] = []
    kind = dict.fromkeys(by["keep"], "forget") | dict.fromkeys(near, "neighbours") | dict.fromkeys(by["unsure"], "")
    counts = dict.fromkeys(SETS, 0)
    held = list(_holdout(corpus, holdout, sorted(by["keep"]), near, seed, notes))
    with ExitStack() as opened:
        files = {name: opened.enter_context(_writer(opened, folder / f"{name}.jsonl")) for name in SETS}
        forget: list[Row] = []
        for number, row in enumerate(_readable(corpus)):
            name = kind.get(number, "retain")
            if name:
                values = _named(row.values, columns or {})
                counts[name] += 1
                _write(files[name], values)
                if name == "forget":
                    forget.append(Row(row.source, values))
        for unseen in held:
            counts["holdout"] += 1
            _write(files["holdout"], _named(unseen, columns or {}))
    for name in SETS:
        if counts[name] == 0:
            (folder / f"{name}.jsonl").unlink(missing_ok=True)
            notes.append(f"no {name} row, so {name}.jsonl is not written")
    try:
        check_rows(iter(forget), DataSource(path=str(folder / "forget.jsonl")))
    except DataError as error:
        notes.append(f"a recipe cannot read these rows yet; give --columns here, or columns in the recipe. {error}")
    counts["unsure"] = len(by["unsure"])
    write_record(folder / SEARCH_NAME, {**record, "sets": counts})
    return Written(folder, counts, tuple(notes))


def neighbours(corpus: Corpus, forget: Sequence[int], taken: Iterable[int]) -> list[int]:
    """The rows that are most like the forget rows and are in no other set, in order of the rows.

    Args:
        corpus: all rows.
        forget: rows to forget.
        taken: rows that cannot be neighbours.

    Returns:
        At most as many as there are forget rows, and a fifth of the other rows.
    """
    excluded = set(taken)
    most = min(len(forget), (len(corpus) - len(excluded)) // _KEPT_SHARE)
    sample = Random(0).sample(list(forget), min(_SAMPLED, len(forget)))
    best: dict[int, float] = {}
    for row in sample:
        scores = corpus.bm25(corpus.text(row))
        scores[list(excluded)] = 0.0
        for other in top(scores, max(_NEAREST, -(-most // len(sample)))):
            best[other] = max(best.get(other, 0.0), float(scores[other]))
    return sorted(sorted(best, key=lambda row: (-best[row], row))[:most])


def _holdout(
    corpus: Corpus, given: Corpus | None, forget: Sequence[int], near: Sequence[int], seed: int, notes: list[str]
) -> Iterator[Mapping[str, Any]]:
    if given is not None:
        query = "\n".join(corpus.text(row) for row in forget[:_SAMPLED])
        yield from (row.values for row in given.values(sorted(top(given.bm25(query), len(forget)))))
        return
    notes.append(
        "holdout.jsonl is made from neighbours with invented names and numbers; real unseen rows (--holdout) are better"
    )
    search = Search(corpus, Query(texts=("holdout",)))
    yield from invented(search, near, seed)


def _readable(corpus: Corpus) -> Iterator[Row]:
    """All rows again, in the order of the corpus."""
    for file in corpus.files:
        yield from (row for row in rows_of(file.file, []) if row.problem is None)


def _named(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row with our field names."""
    theirs = {column: name for name, column in columns.items()}
    return {theirs.get(name, name): value for name, value in values.items() if value is not None}


def _writer(opened: ExitStack, path: Path) -> TextIO:
    partial = opened.enter_context(new_file(path))
    return partial.open("w", encoding="utf-8", errors="backslashreplace")


def _write(file: TextIO, values: Mapping[str, Any]) -> None:
    file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
