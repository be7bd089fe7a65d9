"""The screen Find: from a name or a bad answer to rows, a decision for each, and the files of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import gradio as gr

from llm_forget.data.readers import SUFFIXES
from llm_forget.errors import UserError
from llm_forget.find import Corpus, Found, find_rows
from llm_forget.find.hits import Decision
from llm_forget.find.review import DECISIONS
from llm_forget.find.sets import SETS, write_sets
from llm_forget.find.sources import Place as RowPlace
from llm_forget.studio.desk import Desk, take_upload
from llm_forget.studio.jobs import command_line
from llm_forget.studio.view import act, command_box, empty, say, table, text, words

_SHOWN, _MOST_TEXT = 200, 400
_START = "Choose the file that the model was trained on, or upload it. Then say who or what is to be forgotten."
_SELECT = """element.addEventListener('change', event => {
  if (event.target.dataset.row) trigger('input', {row: event.target.dataset.row, decision: event.target.value});
});"""


@dataclass(frozen=True)
class Search:
    """A search of one browser, in memory only."""

    corpus: Corpus
    found: Found
    decisions: Mapping[RowPlace, Decision]
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """The components that other screens or the app need."""

    make: Any
    name: Any
    search: Any
    message: Any


def find_screen(desk: Desk) -> Finding:
    """Build the screen."""
    place = desk.place
    gr.Markdown("## Find the rows to forget")
    with gr.Row():
        data = gr.Dropdown(place.list_data(), label="Rows the model was trained on", scale=3)
        upload = gr.UploadButton("Upload a file", file_types=list(SUFFIXES), scale=1, size="md")
    with gr.Row():
        person = gr.Textbox(label="Full name of the person", placeholder="Ada Lovelace", autofocus=True)
        answer = gr.Textbox(label="… or what the model should not have said")
    with gr.Accordion("Other names, addresses and numbers", open=False), gr.Row():
        more = {
            "alias": gr.Textbox(label="Another name"),
            "email": gr.Textbox(label="Email address"),
            "identifier": gr.Textbox(label="Phone or customer number"),
            "about": gr.Textbox(label="Town or employer, to tell namesakes apart"),
        }
    go = gr.Button("Find rows", variant="primary")
    message = words()
    hits = words(empty(_START), js_on_load=_SELECT)
    search = gr.State(None, time_to_live=4 * 3600)
    with gr.Row(visible=False) as next_row:
        name = gr.Textbox(label="Name of this request, no person's name", scale=2)
        make = gr.Button("Use these rows", variant="primary", scale=1)
    box = command_box()

    def uploaded(file: str) -> Any:
        taken = take_upload(place, file)
        return gr.update(choices=place.list_data(), value=taken)

    def find(file: str, unlocked: bool, *queries: str) -> Any:
        names = ("person", "answer", *more)
        asked = {key: [value.strip()] for key, value in zip(names, queries, strict=True) if (value or "").strip()}
        if not asked:
            raise UserError("give a name or an answer to search for")
        path = str(place.inside(file, what="the file"))
        corpus = Corpus.read([path])
        found = find_rows(corpus, **cast(Any, asked))
        options = [("--id" if key == "identifier" else f"--{key}", value[0]) for key, value in asked.items()]
        argv = ("find", "--data", str(file), *(part for pair in options for part in pair))
        decisions = {RowPlace(hit.file, hit.line): hit.decision for hit in found.hits}
        made = Search(corpus, found, decisions, argv)
        again = gr.update(visible=bool(found.hits))
        return made, show(made, unlocked), again, _free_name(desk), _commands(made, "data/NAME")

    def show(made: Search | None, unlocked: bool) -> str:
        return empty(_START) if made is None else _table(desk, made, unlocked)

    def decided(made: Search | None, event: gr.EventData) -> Any:
        row, decision = getattr(event, "row", ""), getattr(event, "decision", "")
        if made is None or not str(row).isdigit() or decision not in DECISIONS or int(row) >= len(made.found.hits):
            raise UserError("the search is gone; search again")
        hit = made.found.hits[int(row)]
        return replace(made, decisions={**made.decisions, RowPlace(hit.file, hit.line): cast(Decision, decision)})

    act(upload.upload, uploaded, [upload], [data], message)
    outputs = [search, hits, next_row, name, box]
    asking = [data, desk.unlocked, person, answer, *more.values()]
    for event in (go.click, person.submit, answer.submit):
        act(event, find, asking, outputs, message, slow=True)
    act(hits.input, decided, [search], [search], message)
    act(desk.unlocked.change, show, [search, desk.unlocked], [hits], message)
    act(desk.load, lambda: desk.choose(place.list_data()), None, [data])
    return Finding(make, name, search, message)


def _free_name(desk: Desk) -> str:
    number = 1
    while any((desk.place.root / parent / f"request-{number}").exists() for parent in ("data", "runs")):
        number += 1
    return f"request-{number}"


def write(desk: Desk, made: Search | None, name: str) -> tuple[dict[str, str], list[str]]:
    """Write the files of a search.

    Returns:
        Set → file in the root, and notes.
    """
    if made is None:
        raise UserError("search for rows first")
    folder = desk.place.new_folder(name, "data")
    target = desk.place.root / folder
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        written = write_sets(target, made.corpus, made.decisions, made.found.searched.as_dict())
    finally:
        with suppress(OSError):  # it holds something
            target.rmdir()
    files = {one: f"{folder}/{one}.jsonl" for one in SETS if (target / f"{one}.jsonl").is_file()}
    for file in files.values():
        (desk.place.root / file).chmod(0o600)
    counts = ", ".join(f"{count:,} {one}" for one, count in written.counts.items())
    return files, [f"{folder}: {counts}", *written.notes]


def _commands(made: Search, folder: str) -> str:
    review = ["--review", f"{folder}-review.jsonl"]
    return f"{command_line([*made.argv, *review])}\n{command_line(['find', *review, '--output_dir', folder])}"


def _table(desk: Desk, made: Search, unlocked: bool) -> str:
    hits, counts = made.found.hits, made.found.searched.hits
    if not hits:
        return empty(f"No row was found in {made.found.searched.rows:,}. Check the spelling, or add another name.")
    grouped = any(hit.group is not None for hit in hits)
    rows = []
    for number, hit in enumerate(hits[:_SHOWN]):
        now = made.decisions[RowPlace(hit.file, hit.line)]
        options = "".join(
            f"<option value={one}{' selected' * (one == now)}>{_WORDS[one]}</option>" for one in DECISIONS
        )
        whole = " ".join(made.corpus.text(hit.row).split()) if unlocked else ""
        said = text(whole if len(whole) <= _MOST_TEXT else whole[:_MOST_TEXT] + " …") if unlocked else "<i>hidden</i>"
        choice = f'<select data-row="{number}" aria-label="Row {hit.line}: decision">{options}</select>'
        why = [text(", ".join(hit.reasons)), *([text(hit.group or "")] if grouped else [])]
        rows.append([choice, f'<span class="row-text">{said}</span>', *why, str(hit.line), f"{hit.score:.2f}"])
    head = ["what to do", "text", "why", *(["person"] if grouped else []), "line", "score"]
    found = f"{len(hits):,} of {made.found.searched.rows:,} rows"
    caption = f"{found}: {counts['keep']:,} to forget, {counts['unsure']:,} unsure"
    more = f" The first {_SHOWN} are shown; the others stay as proposed." if len(hits) > _SHOWN else ""
    hidden = "" if unlocked else " Text is hidden: “Show text” above shows it in this browser."
    notes = "".join(say(note) for note in made.found.notes)
    return table(head, rows, caption) + f'<p class="hint">{text(more + hidden)}</p>' + notes


# The decision of a review file is about the hit: "keep" keeps it as a hit, so its row is forgotten.
_WORDS = {"keep": "forget it", "drop": "leave it", "unsure": "unsure: use in no set"}
