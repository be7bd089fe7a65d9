"""The ledger: a SQLite file with requests, batches, tests and answers. It holds commitments and numbers, and no text of any row.

Every change is one transaction, so a killed process leaves the ledger as before or after a step. Several processes can use it.
"""

from __future__ import annotations

import calendar
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from llm_forget.certificates.merkle import commit, row_bytes
from llm_forget.data.examples import DataSource, Example, read_examples
from llm_forget.errors import UserError
from llm_forget.requests.schema import migrate
from llm_forget.utils.build import build

HOW = ("joint", "sequential", "stacked")
_ID = re.compile(r"[\w.:-]{1,100}")
_WAIT = 30.0  # seconds for another process to finish a change


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        id: its id.
        received: the date it came in.
        due: the date by which it must be answered.
        state: open, batched, forgotten, returned (came back), answered or withdrawn.
        row_count: number of rows.
        root: the commitment to its rows.
    """

    id: str
    received: str
    due: str
    state: str
    row_count: int
    root: str


@dataclass(frozen=True)
class Batch:
    """Requests that are forgotten together.

    Attributes:
        id: its id.
        how: joint (one adapter for all requests so far), sequential (trained on top of the adapter before) or stacked (trained
            alone, then added to the adapter before).
        state: planned, running, done or rejected.
        previous: the batch whose adapter it builds on; None for the first.
        requests: ids of its requests.
        adapter: digest of its adapter; None until it is done.
        seconds: what it cost.
    """

    id: str
    how: str
    state: str
    previous: str | None
    requests: tuple[str, ...]
    adapter: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """One measurement of one request after a batch.

    Attributes:
        request: its id.
        before: mean answer probability of its rows without any adapter.
        value: the same with the batch's adapter.
        low: lower end of the 95 % interval.
        high: upper end.
        verdict: forgotten, stays, returned, not reached, or not known before.
    """

    request: str
    before: float
    value: float
    low: float
    high: float
    verdict: str


@dataclass
class Ledger:
    """An open ledger.

    Args:
        path: the file; created, readable by its owner only, if there is none.
    """

    path: Path
    _connection: sqlite3.Connection = field(init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(self.path, timeout=_WAIT, isolation_level=None)
            if self._connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                self._connection.execute("PRAGMA journal_mode = WAL")
            for setting in ("synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
                self._connection.execute(f"PRAGMA {setting}")
            migrate(self._connection)
        except (sqlite3.DatabaseError, OSError) as error:
            raise UserError(
                f"{self.path} is no ledger that can be used: {error}; name another file with --ledger"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is written, or nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def add(self, id: str, source: DataSource, received: date, due: date | None = None) -> Request:
        """Add a request.

        Args:
            id: its id; not a person's name, since it stands in statements.
            source: the rows to forget, in a local file.
            received: the date it came in.
            due: the date by which to answer; one month after ``received`` by default.

        Raises:
            UserError: the id is taken or no id, or the rows cannot be read.
        """
        if not _ID.fullmatch(id):
            raise UserError(f"the id {id[:30]!r} cannot be used; give letters, digits and . : _ -, such as R-17")
        rows = read_examples(source)
        made = commit([row_bytes(one) for one in rows])
        until = due or one_month_after(received)
        where = json.dumps(
            {"path": str(Path(source.path).resolve()), "format": source.format, "columns": source.columns}
        )
        values = (id, received.isoformat(), until.isoformat(), len(rows), made.commitment.root, made.secret, where)
        try:
            with self._change() as change:
                change.execute("INSERT INTO requests VALUES (?, ?, ?, 'open', ?, ?, ?, ?)", values)
                _event(change, "added", request=id)
        except sqlite3.IntegrityError:
            raise UserError(f"there is a request {id} already; give another id") from None
        return self.request(id)

    def request(self, id: str) -> Request:
        """One request.

        Raises:
            UserError: there is none with that id.
        """
        found = self._connection.execute(f"{_SELECT} WHERE id = ?", (id,)).fetchone()
        if found is None:
            raise UserError(f"there is no request {id}; `llm-forget requests list` shows all")
        return Request(*found)

    def requests(self, *states: str) -> list[Request]:
        """The requests in some states, or all, by due date."""
        marks = ", ".join("?" * len(states))
        where = f" WHERE state IN ({marks})" if states else ""
        return [Request(*one) for one in self._connection.execute(f"{_SELECT}{where} ORDER BY due, id", states)]

    def due(self, until: date) -> list[Request]:
        """The requests that are not answered and due by a date; a request that came back is always due."""
        waiting = self.requests("open", "batched", "forgotten", "returned")
        return [one for one in waiting if one.state == "returned" or one.due <= until.isoformat()]

    def rows(self, id: str) -> list[Example]:
        """The rows of a request, which must be as they were when it was added.

        Raises:
            UserError: their file is not here, or was changed.
        """
        source = self.source(id)
        rows = read_examples(source)
        secret, root = self._connection.execute("SELECT secret, root FROM requests WHERE id = ?", (id,)).fetchone()
        if commit([row_bytes(one) for one in rows], secret).commitment.root != root:
            raise UserError(f"the rows of request {id} are not those that were added; put the file back as it was")
        return rows

    def source(self, id: str) -> DataSource:
        """Where the rows of a request are.

        Raises:
            UserError: it is not kept, since the request was withdrawn.
        """
        self.request(id)
        (found,) = self._connection.execute("SELECT source FROM requests WHERE id = ?", (id,)).fetchone()
        if found is None:
            raise UserError(f"request {id} was withdrawn, so it is not kept where its rows are")
        return build(DataSource, json.loads(found), f"request {id}")

    def withdraw(self, id: str) -> None:
        """Withdraw a request that nothing was done about. The place of its rows and its salts are removed.

        Raises:
            UserError: it was forgotten already, or a batch with it is running.
        """
        with self._change() as change:
            state = self.request(id).state
            answered = change.execute("SELECT 1 FROM answers WHERE request = ?", (id,)).fetchone()
            if state not in ("open", "batched") or answered:
                raise UserError(f"request {id} is {state}, so it cannot be withdrawn")
            running = "SELECT b.id FROM members m JOIN batches b ON b.id = m.batch WHERE m.request = ? AND b.state = 'running'"
            found = change.execute(running, (id,)).fetchone()
            if found:
                raise UserError(f"request {id} is in the batch {found[0]}, which is running; wait until it ends")
            planned = (
                "DELETE FROM members WHERE request = ? AND batch IN (SELECT id FROM batches WHERE state = 'planned')"
            )
            change.execute(planned, (id,))
            change.execute("UPDATE requests SET state = 'withdrawn', secret = NULL, source = NULL WHERE id = ?", (id,))
            _event(change, "withdrawn", request=id)

    def answer(self, id: str, statement: str) -> bool:
        """Record that a request was answered with a statement.

        Args:
            id: its id.
            statement: the statement's SHA-256.

        Returns:
            Whether this was new; False if the same answer was recorded already.

        Raises:
            UserError: it is not forgotten, or was answered with another statement.
        """
        with self._change() as change:
            state = self.request(id).state
            known = change.execute("SELECT statement FROM answers WHERE request = ?", (id,)).fetchone()
            if known is not None:
                if known[0] == statement:
                    return False
                raise UserError(f"request {id} was answered already, with the statement {known[0][:12]}")
            if state != "forgotten":
                raise UserError(f"request {id} is {state}; only what is forgotten can be answered")
            change.execute("INSERT INTO answers VALUES (?, ?, ?)", (id, now(), statement))
            change.execute("UPDATE requests SET state = 'answered' WHERE id = ?", (id,))
            _event(change, "answered", request=id)
        return True

    def export(self) -> dict[str, Any]:
        """Everything but salts and places of rows, for JSON."""
        found = {name: self._table(f"SELECT * FROM {name} ORDER BY rowid") for name in _TABLES}
        for one in found["requests"]:
            del one["secret"], one["source"]
        return {"schema": 1, "exported": now(), **found}

    def history(self, id: str) -> list[dict[str, Any]]:
        """The events of a request and of its batches, oldest first."""
        self.request(id)
        own = "SELECT at, what, batch FROM events WHERE request = ? ORDER BY seq"
        return self._table(own, id)

    def tests_of(self, batch: str) -> list[Measured]:
        """The tests of a batch's adapter, oldest first."""
        query = "SELECT request, before, value, low, high, verdict FROM tests WHERE batch = ? ORDER BY seq"
        return [Measured(*one) for one in self._connection.execute(query, (batch,))]

    def _table(self, query: str, *values: str) -> list[dict[str, Any]]:
        cursor = self._connection.execute(query, values)
        names = [one[0] for one in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


_SELECT = "SELECT id, received, due, state, row_count, root FROM requests"
_TABLES = ("requests", "batches", "members", "tests", "answers", "events")


def one_month_after(day: date) -> date:
    """The same day of the next month, or its last day: the time limit of Article 12(3) GDPR."""
    year, month = day.year + day.month // 12, day.month % 12 + 1
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def now() -> str:
    """The time, RFC 3339 in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _event(change: sqlite3.Connection, what: str, *, request: str | None = None, batch: str | None = None) -> None:
    change.execute("INSERT INTO events (at, what, request, batch) VALUES (?, ?, ?, ?)", (now(), what, request, batch))


def add_events(change: sqlite3.Connection, what: str, requests: Sequence[str], batch: str) -> None:
    """Add an event of a batch for each of its requests."""
    for one in requests:
        _event(change, what, request=one, batch=batch)
