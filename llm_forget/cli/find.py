"""`llm-forget find`: from a name or a bad answer to the rows that taught it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_forget.cli.console import Json, print_json, print_table, say_notes
from llm_forget.errors import UserError
from llm_forget.utils.terminal import clean, echo

if TYPE_CHECKING:
    from llm_forget.find import Model

Texts = list[str] | None


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
    attribution: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="also rank rows by their effect on --model: gradients or unlearning"),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="YAML", help="names of the columns in --data, for example '{question: query}'")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="hits to show; --json has all of them")] = 20,
    as_json: Json = False,
) -> None:
    """Find the rows about a person, or the rows that taught a bad answer.

    Shows the text of the hits in the terminal, and writes nothing.
    A hit is proposed as keep (to be forgotten), unsure or drop.

    \b
    Examples:
      llm-forget find --data train.jsonl --person "Ada Lovelace"
      llm-forget find --data train.jsonl --answer "Ada lives in Bath."
    """
    from llm_forget.find import Corpus
    from llm_forget.find import find as search
    from llm_forget.find.hits import as_rows
    from llm_forget.utils.build import with_overrides

    if (ask or attribution) and not model:
        raise UserError(f"{'--ask' if ask else '--attribution'} needs --model: the model that gives the answer")
    corpus = Corpus.read([str(path) for path in data or ()])
    loaded = _load(model, adapter) if model else None
    questions, answers = list(question or ()), list(answer or ())
    if ask and loaded:
        questions = [*ask, *questions]
        answers = [*(_asked(loaded, one) for one in ask), *answers]
    found = search(
        corpus,
        person=person or (),
        alias=alias or (),
        email=email or (),
        identifier=identifier or (),
        answer=answers,
        question=questions,
        about=about or (),
        model=loaded,
        attribution=attribution,
        columns=with_overrides({}, {} if columns is None else {"columns": columns}).get("columns"),
    )
    if as_json:
        print_json({"rows": as_rows(found.hits), "searched": found.searched.as_dict(), "notes": list(found.notes)})
        return
    say_notes(found.notes)
    shown = [
        [
            f"{hit.file}:{hit.line}",
            f"{hit.score:.2f}",
            hit.decision,
            ", ".join(hit.reasons),
            _short(corpus.text(hit.row)),
        ]
        for hit in found.hits[:limit]
    ]
    if shown:
        print_table(["row", "score", "proposal", "reasons", "text"], shown)
    counts = found.searched.hits
    echo(
        f"{len(found.hits):,} of {found.searched.rows:,} rows found: {counts['keep']:,} keep, {counts['unsure']:,} unsure, "
        f"{counts['drop']:,} drop"
    )


def _load(name: str, adapter: str | None) -> Model:
    """Load the model that is asked, with the prompt format of a recipe without settings."""
    from llm_forget.config import ModelConfig
    from llm_forget.data.encode import EncodingConfig
    from llm_forget.find import Model
    from llm_forget.model.load import load_model

    model, tokenizer = load_model(ModelConfig(name=name, adapter=adapter))
    return Model(model, tokenizer, EncodingConfig())


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
