"""The tables of a ledger, and the migrations from older ones."""

from __future__ import annotations

import sqlite3

from llm_forget.errors import UserError

# Each entry brings a ledger from the version of its place (0 is an empty file) to the next one. Entries are never changed.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE requests (
        id TEXT PRIMARY KEY,
        received TEXT NOT NULL,
        due TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'batched', 'forgotten', 'returned', 'answered', 'withdrawn')),
        row_count INTEGER NOT NULL CHECK (row_count > 0),
        root TEXT NOT NULL,
        secret BLOB,      -- of the salts; removed when the request is withdrawn, and never exported
        source TEXT       -- where the rows are, as JSON; likewise
    ) STRICT;
    CREATE TABLE batches (
        id TEXT PRIMARY KEY,
        how TEXT NOT NULL CHECK (how IN ('joint', 'sequential', 'stacked')),
        state TEXT NOT NULL CHECK (state IN ('planned', 'running', 'done', 'rejected')),
        created TEXT NOT NULL,
        ended TEXT,
        previous TEXT REFERENCES batches (id),  -- whose adapter it builds on
        adapter TEXT,                           -- digest of the adapter that is served after it
        seconds REAL
    ) STRICT;
    CREATE TABLE members (
        batch TEXT NOT NULL REFERENCES batches (id),
        request TEXT NOT NULL REFERENCES requests (id),
        PRIMARY KEY (batch, request)
    ) STRICT;
    CREATE TABLE tests (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        batch TEXT NOT NULL REFERENCES batches (id),  -- whose adapter was measured
        request TEXT NOT NULL REFERENCES requests (id),
        before REAL NOT NULL,                         -- mean answer probability without any adapter
        value REAL NOT NULL,
        low REAL NOT NULL,
        high REAL NOT NULL,
        verdict TEXT NOT NULL CHECK (verdict IN ('forgotten', 'stays', 'returned', 'not reached', 'not known before'))
    ) STRICT;
    CREATE TABLE answers (
        request TEXT PRIMARY KEY REFERENCES requests (id),
        at TEXT NOT NULL,
        statement TEXT NOT NULL
    ) STRICT;
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        what TEXT NOT NULL,
        request TEXT,
        batch TEXT
    ) STRICT;
    CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are not changed'); END;
    CREATE TRIGGER events_remain BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are not removed'); END;
    CREATE TRIGGER answers_stay BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'an answer is not changed'); END;
    """,
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a ledger to the newest version, in one transaction.

    Raises:
        UserError: it is of a newer version than this program knows.
    """
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)  # another process may have been first
        if version > len(MIGRATIONS):
            raise UserError(
                f"the ledger has version {version}, and this program knows {len(MIGRATIONS)}; update llm-forget"
            )
        for script in MIGRATIONS[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> list[str]:
    """The statements of a script; ``executescript`` would commit the transaction first."""
    found, rest = [], ""
    for part in script.split(";"):
        rest += part + ";"
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return [one for one in found if one.strip("; \n")]
