"""The screen Evidence: the ledger of requests, signed certificates, and verification of what somebody sends."""

from __future__ import annotations

import json
import secrets
import shutil
import zipfile
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import gradio as gr

from llm_forget.certificates.keys import load_public, make_key
from llm_forget.certificates.manifest import AUDITOR_NAME, FOLDER_NAME, PERSON_NAME, STATEMENT_NAME
from llm_forget.certificates.verify import Report, verify
from llm_forget.errors import UserError
from llm_forget.requests.ledger import Ledger
from llm_forget.studio.desk import Desk, uploaded_file
from llm_forget.studio.jobs import command_line, result_of
from llm_forget.studio.place import Place
from llm_forget.studio.view import act, command_box, empty, link, say, table, text, words

_LEDGER = "requests.sqlite"
_NO_REQUEST = "The ledger is empty. Enter a request below as soon as it comes in; the law counts the days from then."
_MOST_FILES, _MOST_BYTES = 10_000, 1 << 30  # of a run folder that somebody sends
_PAGES = ("Page for the person", "Page for the auditor", "The statement")
_KEEP = "The openings of the commitment stay next to the run: keep them private."
_ONLY = "Only the statement was sent, so the run's files are missing: a zip of the run folder checks them too."
_MARKS = {True: "✓ ok", False: "✗ failed", None: "– not checked"}


def evidence_screen(desk: Desk, tab: Any) -> None:
    """Build the screen."""
    place = desk.place
    gr.Markdown("## Requests and evidence")
    ledger = words(empty(_NO_REQUEST))
    with gr.Accordion("Enter a request", open=False):
        with gr.Row():
            new_id = gr.Textbox(label="Its id, such as R-17; no person's name")
            rows = gr.Dropdown([], label="Its rows")
            received = gr.Textbox(label="Received on", value=lambda: date.today().isoformat())
        enter = gr.Button("Enter it")
    gr.Markdown("### Sign a certificate")
    with gr.Row():
        run = gr.Dropdown([], label="Run")
        request = gr.Textbox(label="Id of the request")
        day = gr.Textbox(label="Received on (optional)", placeholder="2026-11-02")
    with gr.Row():
        key = gr.Dropdown([], label="Key")
        passphrase = gr.Textbox(label="Passphrase of the key", type="password")
        make = gr.Button("Make a key")
        sign = gr.Button("Sign", variant="primary")
    message = words()
    signed = words()
    gr.Markdown("### Check a certificate")
    with gr.Row():
        public = gr.Dropdown([], label="Public key that you trust")
        check = gr.Button("Check the run above")
        sent = gr.UploadButton("Check an upload, or add a key", file_types=[".zip", ".json", ".pub"])
    problem, outcome = words(), words()
    box = command_box()

    def look(chosen: str | None, used: str | None, trusted: str | None) -> Any:
        runs, _ = desk.runs(chosen)
        keys = desk.choose(_keys(place, ".key"), used), desk.choose(_keys(place, ".pub"), trusted)
        return _ledger(place), gr.update(choices=place.list_data()), runs, *keys

    def entered(id: str, file: str, since: str) -> tuple[str, str, str]:
        path = place.relative(place.inside(file, what="the file with the rows"))
        day = (_day(since) or date.today()).isoformat()
        argv = ["requests", "add", "--id", id.strip(), "--rows", path, "--received", day, "--ledger", _LEDGER]
        result_of(place, argv)
        return _ledger(place), command_line(argv), id.strip()

    def made(secret: str) -> Any:
        if len(secret or "") < 8:
            raise UserError("write a passphrase of 8 or more characters first; without it nobody can sign, so keep it")
        names = _keys(place, ".key")
        name = next(one for number in range(1000) if (one := f"office{number or ''}.key") not in names)
        make_key(place.root / name, secret)
        argv = command_line(["keys", "new", "--to", name])
        return gr.update(choices=[*names, name], value=name), desk.choose(_keys(place, ".pub"), f"{name}.pub"), argv

    def certified(name: str, id: str, since: str, used: str, secret: str) -> tuple[str, str]:
        desk.run(name)
        if not (id or "").strip():
            raise UserError("write the id of the request that the run answers")
        if not used:
            raise UserError("choose a key, or write a passphrase and press “Make a key”")
        file = place.relative(place.inside(used, what="the key"))
        argv = ["certify", name, "--key", file, "--request", id.strip()]
        argv += ["--received", (_day(since) or date.today()).isoformat()] if (since or "").strip() else []
        found = json.loads(result_of(place, [*argv, "--json"], secret=secret or None))
        pages = zip((PERSON_NAME, AUDITOR_NAME, STATEMENT_NAME), _PAGES, strict=True)
        links = [link(f"certificate/{name}/{FOLDER_NAME}/{page}", label) for page, label in pages]
        links.append(link(f"key/{file}.pub", "The public key"))
        told = f"Signed: {found['sha256'][:12]}. {_KEEP}"
        return say(told) + f"<p>{' · '.join(links)}</p>", command_line(argv)

    def verified(name: str, trusted: str) -> tuple[str, str]:
        desk.run(name)
        file = place.inside(trusted, what="the public key")
        line = command_line(["verify", name, "--key", str(trusted)])
        return _report(verify(place.root / name, [load_public(file)])), line

    def uploaded(file: str, trusted: str) -> Any:
        source = uploaded_file(place, file)
        if source.suffix == ".pub":
            load_public(source)
            target = place.root / f"trusted-{secrets.token_hex(3)}.pub"
            source.replace(target)
            return desk.choose(_keys(place, ".pub"), target.name), say(f"{target.name} was added."), gr.skip()
        key_file = place.inside(trusted, what="the public key")
        line = command_line(["verify", "FOLDER", "--key", str(trusted)])
        return gr.skip(), _check_upload(place, source, key_file), line

    act(tab.select, look, [run, key, public], [ledger, rows, run, key, public], message)
    act(enter.click, entered, [new_id, rows, received], [ledger, box, request], message)
    act(make.click, made, [passphrase], [key, public, box], message)
    act(sign.click, certified, [run, request, day, key, passphrase], [signed, box], message, slow=True)
    act(check.click, verified, [run, public], [outcome, box], problem, slow=True)
    act(sent.upload, uploaded, [sent, public], [public, outcome, box], problem, slow=True)


def _keys(place: Place, *ends: str) -> list[str]:
    found = [one.name for one in place.root.iterdir() if one.is_file() and one.name.endswith(ends)]
    return sorted(one for one in found if not one.startswith("."))


def _day(given: str | None) -> date | None:
    try:
        return date.fromisoformat(given.strip()) if (given or "").strip() and given else None
    except ValueError:
        raise UserError("that is no date; write YYYY-MM-DD") from None


def _ledger(place: Place) -> str:
    if not (place.root / _LEDGER).is_file():
        return empty(_NO_REQUEST)
    with closing(Ledger(place.root / _LEDGER)) as opened:
        found = opened.requests()
    today = date.today().isoformat()
    late = {one.id for one in found if one.due < today and one.state not in ("answered", "withdrawn")}
    rows = [
        [*map(text, (one.id, one.state, one.received, one.due + (" (late)" if one.id in late else ""), one.row_count)),
         f"<code>{text(one.root[:12])}</code>"]
        for one in found
    ]  # fmt: skip
    head = ["request", "state", "received", "due", "rows", "commitment"]
    return table(head, rows, "Requests") if rows else empty(_NO_REQUEST)


def _report(found: Report) -> str:
    rows = [[text(_MARKS[one.ok]), text(one.name), text(one.text)] for one in found.checks]
    word, kind = ("Accepted", "note") if found.accepted else ("NOT accepted", "alert")
    return say(word, kind) + table(["result", "check", "what was found"], rows, "Checks")


def _check_upload(place: Place, file: Path, key: Path) -> str:
    """Verify a statement, or a run folder in a zip file, that somebody sent. Nothing of it is kept."""
    folder = place.uploads / f"check-{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=0o700)
        if file.suffix.lower() != ".zip":
            (folder / FOLDER_NAME).mkdir()
            file.replace(folder / FOLDER_NAME / STATEMENT_NAME)
            return say(_ONLY) + _report(verify(folder, [load_public(key)]))
        _unpack(file, folder)
        found = sorted(folder.rglob(f"{FOLDER_NAME}/{STATEMENT_NAME}"), key=lambda one: len(one.parts))
        if not found:
            raise UserError(f"the zip file has no {FOLDER_NAME}/{STATEMENT_NAME}; zip the whole run folder")
        return _report(verify(found[0], [load_public(key)]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(file.parent, ignore_errors=True)


def _unpack(file: Path, folder: Path) -> None:
    """Unpack plain files below a folder; entries that lead out of it are put into it, and links become files.

    Raises:
        UserError: it is no zip file, or is too large.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_FILES or sum(one.file_size for one in entries) > _MOST_BYTES:
                raise UserError("the zip file holds too much for a run folder")
            archive.extractall(folder)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        raise UserError("the file is no zip file that can be read") from None
