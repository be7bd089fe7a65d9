"""`llm-forget find`: from a name or a bad answer to the rows that taught it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json, print_table, say_notes
from llm_forget.errors import UserError
from llm_forget.utils.terminal import clean, echo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_forget.find import Corpus, Found, Model
    from llm_forget.find.hits import Decision
    from llm_forget.find.sources import Place

Texts = list[str] | None
_MOST_ROWS = 1000


def find(
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="file or folder with the rows a model was trained on; repeatable"),
    ] = None,
    person: Annotated[Texts, typer.Option(metavar="NAME", help="full name of a person; repeatable")] = None,
    alias: Annotated[Texts, typer.Option(metavar="NAME", help="another name of the person; repeatable")] = None,
    email: Annotated[Texts, typer.Option(metavar="ADDRESS", help="email address of the person; repeatable")] = None,
    identifier: Annotated[
        Texts, typer.Option("--id", metavar="TEXT", help="phone, account or customer number; repeatable")
    ] = None,
    answer: Annotated[
        Texts, typer.Option(metavar="TEXT", help="what a model should not have written; repeatable")
    ] = None,
    question: Annotated[
        Texts, typer.Option(metavar="TEXT", help="the question that led to the answer, if known; repeatable")
    ] = None,
    about: Annotated[
        Texts, typer.Option(metavar="TEXT", help="tells people of one name apart: a town, employer or date; repeatable")
    ] = None,
    ask: Annotated[
        Texts, typer.Option(metavar="QUESTION", help="search for the answer of --model to this question; repeatable")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="folder or hub id, for --ask, paraphrases and --attribution")
    ] = None,
    adapter: Annotated[str | None, typer.Option(metavar="DIR", help="adapter of --model")] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="YAML",
            help="prompt format of --model, such as '{system_prompt: \"\"}'; default: that of the run that wrote it",
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="after unlearning: do the answers of this run's model still lead to its rows?"
        ),
    ] = None,
    attribution: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="also rank rows by their effect on --model: gradients or unlearning"),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="YAML", help="names of the columns in --data, for example '{question: query}'")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option("--rows", metavar="FILE", help="search for more rows like those of this file")
    ] = None,
    review: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="write the hits there, to be marked keep, drop or unsure; without a query: read it"
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", metavar="DIR", help="write forget, retain, neighbours and holdout .jsonl there"),
    ] = None,
    holdout: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="rows the model was never trained on, for holdout.jsonl; default: made up"),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="keep an index for more searches there; it holds the text of all rows"),
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write what was searched, without text, as JSON")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="hits to show; --json has all of them")] = 20,
    as_json: Json = False,
) -> None:
    """Find the rows about a person, or the rows that taught a bad answer.

    Text is shown in the terminal and written only to the files you name. Every
    hit has a proposal: keep it (it will be forgotten), drop it, or unsure.
    Change them in the review file, then make the sets of a recipe from it.
    Exit status 1: no row was found; with --again, rows are still found.

    \b
    Examples:
      llm-forget find --data train.jsonl --person "Ada Lovelace" \\
        --review review.jsonl
      llm-forget find --review review.jsonl --output_dir my_data
      llm-forget find --data train.jsonl --model MODEL --ask "Who lives in Bath?"
      llm-forget find --again runs/mine
    """
    from llm_forget.find import Corpus, find_rows
    from llm_forget.find.hits import as_rows
    from llm_forget.find.index import read_indexed
    from llm_forget.utils.build import with_overrides

    if again is not None:
        _again(again, [str(path) for path in data or ()], as_json=as_json)
        return
    named = with_overrides({}, {} if columns is None else {"columns": columns}).get("columns")
    given = [str(path) for path in data or ()]
    query = any((person, alias, email, identifier, answer, question, ask, rows))
    if review is not None and not query:
        _from_review(review, given, output_dir, holdout, named, as_json=as_json)
        return
    if ask and not all(any(one.isalnum() for one in text) for text in ask):
        raise UserError("--ask is empty: give it a question")
    if (ask or attribution) and not model:
        raise UserError(f"{'--ask' if ask else '--attribution'} needs --model: the model that gives the answer")
    texts = _texts_of(rows) if rows else []
    corpus = Corpus.read(given) if index is None else read_indexed(given, index)
    loaded, asked_as = _load(model, adapter, encoding, exact=attribution is not None) if model else (None, [])
    questions, answers = list(question or ()), list(answer or ())
    if ask and loaded:
        questions = [*ask, *questions]
        answers = [*(_asked(loaded, one) for one in ask), *answers]
    found = find_rows(
        corpus,
        person=person or (),
        alias=alias or (),
        email=email or (),
        identifier=identifier or (),
        answer=answers,
        question=questions,
        rows=texts,
        about=about or (),
        model=loaded,
        attribution=attribution,
        columns=named,
    )
    notes = [*asked_as, *found.notes]
    if ask:
        asked = {"model": model, "adapter": adapter, "questions": len(ask)}
        found = replace(found, searched=replace(found.searched, asked=asked))
    if review is not None and found.hits:
        from llm_forget.find.review import write_review

        write_review(review, found, corpus)
        notes.append(f"{review} holds the hits with their text: mark each row keep, drop or unsure")
    if record is not None:
        from llm_forget.utils.files import write_record

        write_record(record, found.searched.as_dict())
    shown = {"rows": as_rows(found.hits), "searched": found.searched.as_dict(), "notes": notes}
    if output_dir is not None and found.kept():
        from llm_forget.find.sources import Place

        decisions = {Place(hit.file, hit.line): hit.decision for hit in found.hits}
        shown["sets"] = _sets(output_dir, corpus, decisions, found.searched.as_dict(), holdout, named, notes)
    if as_json:
        print_json(shown)
    else:
        _show(found, corpus, limit, notes)
    raise typer.Exit(0 if found.hits else 1)


def _from_review(
    review: Path,
    data: list[str],
    output_dir: Path | None,
    holdout: Path | None,
    columns: dict[str, str] | None,
    *,
    as_json: bool,
) -> None:
    """Make the sets of a recipe from a review file."""
    from llm_forget.find import Corpus
    from llm_forget.find.review import check_unchanged, read_review

    if output_dir is None:
        raise UserError(
            "--review without anything to search for reads a review file: add --output_dir for its sets, or --person and others"
        )
    found = read_review(review)
    files = data or [str(file["file"]) for file in found.record.get("files", ())]
    if not files:
        raise UserError(f"the record next to {review} is missing, so the data are unknown: give them with --data")
    corpus = Corpus.read(files)
    check_unchanged(corpus, found.record)
    notes: list[str] = []
    counts = _sets(output_dir, corpus, found.decisions, found.record, holdout, columns, notes)
    if as_json:
        print_json({"sets": counts, "notes": notes})
        return
    say_notes(notes)


def _sets(
    folder: Path,
    corpus: Corpus,
    decisions: Mapping[Place, Decision],
    record: Mapping[str, Any],
    holdout: Path | None,
    columns: dict[str, str] | None,
    notes: list[str],
) -> Mapping[str, int]:
    """Write the sets. Returns the number of rows of each."""
    from llm_forget.find import Corpus
    from llm_forget.find.sets import write_sets
    from llm_forget.utils.output import writing

    with writing(folder, "--output_dir", shared=True):
        unseen = None if holdout is None else Corpus.read([holdout])
        written = write_sets(folder, corpus, decisions, record, holdout=unseen, columns=columns)
    notes.extend(written.notes)
    notes.append(f"{folder}: " + ", ".join(f"{count:,} {name}" for name, count in written.counts.items()))
    return written.counts


def _show(found: Found, corpus: Corpus, limit: int, notes: list[str]) -> None:
    """Print the best hits as a table, and notes on standard error."""
    grouped = any(hit.group is not None for hit in found.hits)
    shown = [
        [
            f"{hit.file}:{hit.line}",
            f"{hit.score:.2f}",
            hit.decision,
            *([str(hit.group or "")] if grouped else []),
            ", ".join(hit.reasons),
            _short(corpus.text(hit.row)),
        ]
        for hit in found.hits[:limit]
    ]
    if shown:
        print_table(["row", "score", "proposal", *(["group"] if grouped else []), "reasons", "text"], shown)
    counts = found.searched.hits
    if found.hits:
        echo(
            f"{len(found.hits):,} of {found.searched.rows:,} rows: {counts['keep']:,} keep, {counts['unsure']:,} unsure, "
            f"{counts['drop']:,} drop"
        )
    else:
        echo(f"no hit in {found.searched.rows:,} rows")
    say_notes(notes)
    # the record has every stage; those that do not apply to what was asked are not worth a line
    missed = [
        f"{what.replace('_', ' ')} ({why})"
        for what, why in found.searched.not_searched.items()
        if "--" in why or not why.startswith("no ")
    ]
    if missed:
        say_notes([f"not searched: {'; '.join(missed)}"])


def _texts_of(file: Path) -> list[str]:
    """The texts of the rows of a file."""
    from llm_forget.find.sources import files_in, rows_of, text_of

    texts = [text_of(row.values) for name in files_in([file]) for row in rows_of(name, []) if row.problem is None]
    if not texts:
        raise UserError(f"--rows: {file} has no row that can be read")
    if len(texts) > _MOST_ROWS:
        raise UserError(f"--rows: {file} has {len(texts):,} rows; at most {_MOST_ROWS:,} are compared: give fewer")
    return texts


def _load(name: str, adapter: str | None, encoding: str | None, *, exact: bool) -> tuple[Model, list[str]]:
    """Load the model that is asked. Returns lines for the user as well."""
    from llm_forget.find.asked import load_asked
    from llm_forget.utils.build import with_overrides

    given = None if encoding is None else with_overrides({}, {"encoding": encoding})["encoding"]
    return load_asked(name, adapter, given, exact=exact)


def _again(run: Path, data: list[str], *, as_json: bool) -> None:
    """Search again with the model of a run."""
    from llm_forget.find.after import search_run

    found = search_run(run, data)
    if as_json:
        print_json(found.as_dict())
    else:
        for line in found.sentences():
            echo(line)
    raise typer.Exit(1 if found.above_chance else 0)


def _asked(loaded: Model, question: str) -> str:
    """The model's own answer, which is shown in the terminal."""
    from llm_forget.model.ask import ask

    answer = ask(loaded.model, loaded.tokenizer, question, loaded.encoding)
    if not answer:
        raise UserError("--ask: the model's answer is empty, so there is nothing to search for; ask another question")
    echo(f"answer: {_short(answer, 400)}", file=sys.stderr)
    return answer


def _short(text: str, most: int = 80) -> str:
    line = " ".join(clean(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
