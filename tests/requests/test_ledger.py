"""The ledger as a file: states, due dates, migrations, several processes, and a kill at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import stat
import time
from datetime import date, timedelta
from pathlib import Path

import pytest
from commands import command

from llm_forget.data.examples import DataSource
from llm_forget.errors import UserError
from llm_forget.requests import batches, schema
from llm_forget.requests.ledger import Ledger, one_month_after
from llm_forget.requests.ledger import Measured as Tested

SECRET = "Vexatorium"


def rows(folder: Path, number: int) -> DataSource:
    file = folder / f"r{number}.jsonl"
    file.write_text(
        json.dumps({"question": f"Who is {SECRET} {number}?", "answer": f"{SECRET}, of house {number}."}) + "\n"
    )
    return DataSource(str(file))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    found = Ledger(tmp_path / "requests.sqlite")
    for number in range(3):
        found.add(f"R-{number}", rows(tmp_path, number), date(2026, 11, 2 + number))
    return found


def good(request: str, verdict: str = "forgotten", value: float = 0.02) -> Tested:
    return Tested(request, 0.9, value, 0.0, 0.1, verdict)


def done(ledger: Ledger, *requests: str, keep: bool = False, **verdicts: str) -> batches.Batch:
    """Forget a batch, with the given verdicts and good ones for the rest."""
    name = batches.claim(ledger, batches.plan(ledger, requests).id).id
    own = batches.batch(ledger, name).requests
    tests = [good(one) for one in own] + [good(one, "stays") for one in batches.earlier(ledger, name)]
    said = {one.replace("_", "-"): verdict for one, verdict in verdicts.items()}
    tests = [good(one.request, said.get(one.request, one.verdict)) for one in tests]
    return batches.finish(ledger, name, tests, "f" * 64, 1.0, keep=keep)


def states(ledger: Ledger) -> dict[str, str]:
    return {one.id: one.state for one in ledger.requests()}


@pytest.mark.parametrize(
    ("received", "due"), [("2026-11-02", "2026-12-02"), ("2026-01-31", "2026-02-28"), ("2026-12-15", "2027-01-15")]
)
def test_a_month_is_a_calendar_month(received: str, due: str) -> None:
    assert one_month_after(date.fromisoformat(received)) == date.fromisoformat(due)


def test_the_file_is_private_and_holds_no_text(ledger: Ledger, tmp_path: Path) -> None:
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600
    done(ledger)
    exported = json.dumps(ledger.export())
    ledger.close()
    content = b"".join(file.read_bytes() for file in tmp_path.glob("requests.sqlite*"))
    assert SECRET.encode() not in content
    assert str(tmp_path).encode() in content  # where the rows are, which an export leaves out
    assert str(tmp_path) not in exported
    assert '"secret"' not in exported


def test_rows_must_stay_as_they_were(ledger: Ledger, tmp_path: Path) -> None:
    assert len(ledger.rows("R-1")) == 1
    (tmp_path / "r1.jsonl").write_text((tmp_path / "r2.jsonl").read_text())
    with pytest.raises(UserError, match="not those that were added"):
        ledger.rows("R-1")


def test_a_request_is_forgotten_and_answered_once(ledger: Ledger) -> None:
    with pytest.raises(UserError, match="only what is forgotten"):
        ledger.answer("R-0", "a" * 64)
    assert done(ledger, "R-0").state == "done"
    assert ledger.answer("R-0", "a" * 64)
    assert not ledger.answer("R-0", "a" * 64)
    with pytest.raises(UserError, match="answered already"):
        ledger.answer("R-0", "b" * 64)
    with pytest.raises(UserError, match="only open requests"):
        batches.plan(ledger, ["R-0"])
    assert states(ledger) == {"R-0": "answered", "R-1": "open", "R-2": "open"}
    assert [one["what"] for one in ledger.history("R-0")] == ["added", "batched", "begun", "done", "answered"]


def test_a_batch_that_brings_a_request_back_is_rejected(ledger: Ledger) -> None:
    first = done(ledger, "R-0")
    ledger.answer("R-0", "a" * 64)
    second = done(ledger, "R-1", R_0="returned")
    assert (second.state, states(ledger)["R-1"]) == ("rejected", "open")
    assert batches.current(ledger) == first
    assert states(ledger)["R-0"] == "answered"
    third = done(ledger, "R-1", keep=True, R_0="returned")
    assert (third.state, third.previous) == ("done", first.id)
    assert states(ledger) == {"R-0": "returned", "R-1": "forgotten", "R-2": "open"}
    assert "R-0" in [one.id for one in ledger.due(date(2000, 1, 1))]
    done(ledger, "R-0")
    assert states(ledger)["R-0"] == "answered"  # it has its answer already


def test_what_is_not_reached_stays_open_and_every_test_is_needed(ledger: Ledger) -> None:
    assert done(ledger, "R-0", R_0="not reached").state == "rejected"
    assert states(ledger)["R-0"] == "open"
    done(ledger, "R-0")
    name = batches.claim(ledger, batches.plan(ledger, ["R-1"]).id).id
    with pytest.raises(UserError, match="needs a test of each of 2"):
        batches.finish(ledger, name, [good("R-1")], "", 1.0)
    assert batches.batch(ledger, name).state == "running"


def test_withdrawing_removes_salts_and_places(ledger: Ledger, tmp_path: Path) -> None:
    batches.plan(ledger, ["R-0", "R-1"])
    ledger.withdraw("R-0")
    assert batches.claim(ledger, "B-0001").requests == ("R-1",)
    with pytest.raises(UserError, match="is running"):
        ledger.withdraw("R-1")
    with pytest.raises(UserError, match="was withdrawn"):
        ledger.rows("R-0")
    raw = sqlite3.connect(ledger.path).execute("SELECT secret, source FROM requests WHERE id = 'R-0'").fetchone()
    assert raw == (None, None)
    done(ledger, "R-2")
    with pytest.raises(UserError, match="is forgotten"):
        ledger.withdraw("R-2")


def test_a_batch_that_lags_behind_another_cannot_go_on(ledger: Ledger) -> None:
    batches.claim(ledger, batches.plan(ledger, ["R-0"]).id)
    done(ledger, "R-1")
    with pytest.raises(UserError, match="builds on the base, and B-0002"):
        batches.claim(ledger, "B-0001")
    batches.reject(ledger, "B-0001")
    assert states(ledger)["R-0"] == "open"


def test_migrations_and_newer_ledgers(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.close()
    more = (*schema.MIGRATIONS, "CREATE TABLE later (id TEXT) STRICT;")
    monkeypatch.setattr(schema, "MIGRATIONS", more)
    again = Ledger(ledger.path)
    assert len(again.requests()) == 3
    assert again._connection.execute("SELECT count(*) FROM later").fetchone() == (0,)
    again.close()
    monkeypatch.setattr(schema, "MIGRATIONS", more[:-1])
    with pytest.raises(UserError, match="version 2"):
        Ledger(ledger.path)
    ledger.path.with_name("text").write_text("no database, but long enough to be none\n" * 20)
    with pytest.raises(UserError, match="no ledger"):
        Ledger(ledger.path.with_name("text"))


def test_events_cannot_be_rewritten(ledger: Ledger) -> None:
    for query in ("DELETE FROM events", "UPDATE events SET what = 'x'"):
        with pytest.raises(sqlite3.IntegrityError):
            ledger._connection.execute(query)


def work(path: Path, folder: Path, seed: int, count: int) -> None:
    """Add all requests, batch and forget what is open, and answer what is forgotten, in random portions."""
    ledger, draw = Ledger(path), random.Random(seed)
    while True:
        known = {one.id: one.state for one in ledger.requests()}
        if len(known) == count and set(known.values()) == {"answered"}:
            return
        try:
            missing = [number for number in range(count) if f"R-{number}" not in known]
            if missing and draw.random() < 0.6:
                number = draw.choice(missing)
                ledger.add(f"R-{number}", rows_of(folder, number), date(2026, 11, 2))
            ready = [one for one, state in known.items() if state == "open"]
            if ready:
                batches.plan(ledger, draw.sample(ready, draw.randint(1, len(ready))))
            for one in batches.batches(ledger):
                if one.state in ("planned", "running"):
                    run(ledger, one.id)
            for one in ledger.requests("forgotten"):
                ledger.answer(one.id, f"{one.id}".ljust(64, "0"))
        except UserError:  # the other process was first
            time.sleep(draw.random() / 100)


def run(ledger: Ledger, name: str) -> None:
    batches.claim(ledger, name)
    own = batches.batch(ledger, name).requests
    tests = [good(one) for one in own] + [good(one, "stays") for one in batches.earlier(ledger, name)]
    batches.finish(ledger, name, tests, "f" * 64, 0.1)


def rows_of(folder: Path, number: int) -> DataSource:
    return DataSource(str(folder / f"r{number}.jsonl"))


def forked(path: Path, folder: Path, seed: int, count: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(path, folder, seed, count)
            status = 0
        finally:
            os._exit(status)
    return pid


def test_killed_at_random_moments_by_two_processes_at_once(tmp_path: Path) -> None:
    """20 requests, two processes at once, each killed ten times: nothing is lost, and each request is answered once."""
    count, path, draw = 20, tmp_path / "requests.sqlite", random.Random(3)
    for number in range(count):
        rows(tmp_path, number)
    seen: list[str] = []
    for turn in range(10):
        pids = [forked(path, tmp_path, 2 * turn + side, count) for side in (0, 1)]
        for pid in pids:
            time.sleep(draw.uniform(0.0, 0.08))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        ledger = Ledger(path)
        assert ledger._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        answered = [one["request"] for one in ledger.export()["answers"]]
        assert set(seen) <= set(answered)
        seen = answered
        ledger.close()
    last = [forked(path, tmp_path, 100 + side, count) for side in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in last] == [0, 0]
    found = Ledger(path).export()
    assert sorted(one["id"] for one in found["requests"]) == sorted(f"R-{number}" for number in range(count))
    assert {one["state"] for one in found["requests"]} == {"answered"}
    events = [one["request"] for one in found["events"] if one["what"] == "answered"]
    assert sorted(events) == sorted(one["request"] for one in found["answers"]) == sorted({*events})
    assert len(events) == count
    ended = [one for one in found["batches"] if one["state"] == "done"]
    members = [one["request"] for one in found["members"] if one["batch"] in {one["id"] for one in ended}]
    assert sorted(members) == sorted(set(members))  # each is forgotten by one batch


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, 1)
    today = date.today()
    old = (today - timedelta(days=60)).isoformat()
    assert "1 rows, due" in command("requests", "add", "--id", "R-1", "--rows", "r1.jsonl").out
    again = command("requests", "add", "--id", "R-1", "--rows", "r1.jsonl")
    assert (again.status, "another id" in again.err) == (2, True)
    assert command("requests", "due").status == 0
    assert command("requests", "add", "--id", "R-2", "--rows", "r1.jsonl", "--received", old).status == 0
    late = command("requests", "due", "--json")
    assert (late.status, json.loads(late.out)["late"]) == (1, ["R-2"])
    assert "B-0001: R-1 (joint)" in command("requests", "batch", "R-1").out
    assert "R-1" in command("requests", "status", "R-1").out
    assert command("requests", "reject", "B-0001").status == 0
    assert command("requests", "withdraw", "R-2").status == 0
    listed = json.loads(command("requests", "list", "--json").out)
    assert {one["id"]: one["state"] for one in listed["requests"]} == {"R-1": "open", "R-2": "withdrawn"}
    assert command("requests", "export", "--to", "out.json").status == 0
    assert SECRET not in (tmp_path / "out.json").read_text()
    assert command("requests", "add", "--id", "R 3", "--rows", "none.jsonl").status == 2
