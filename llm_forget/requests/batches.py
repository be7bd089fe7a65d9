"""Batches: which requests are forgotten together, and what becomes of them. Each step is one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from llm_forget.errors import UserError
from llm_forget.requests.ledger import HOW, Batch, Ledger, Measured, add_events, now

_BATCH = "SELECT id, how, state, previous, adapter, seconds FROM batches"


def plan(ledger: Ledger, requests: Sequence[str] = (), how: str = "joint") -> Batch:
    """Put requests into a new batch.

    Args:
        ledger: the ledger.
        requests: their ids; all that are open or came back by default.
        how: joint, sequential or stacked.

    Raises:
        UserError: there are none, or one is in another state.
    """
    if how not in HOW:
        raise UserError(f"{how} is no way to forget a batch; give one of {', '.join(HOW)}")
    with ledger._change() as change:
        chosen = [ledger.request(one) for one in dict.fromkeys(requests)] or ledger.requests("open", "returned")
        if not chosen:
            raise UserError("no request is open; `llm-forget requests list` shows all")
        if wrong := [one for one in chosen if one.state not in ("open", "returned")]:
            raise UserError(f"request {wrong[0].id} is {wrong[0].state}; only open requests can be put into a batch")
        (count,) = change.execute("SELECT count(*) FROM batches").fetchone()
        name = f"B-{count + 1:04}"
        change.execute("INSERT INTO batches (id, how, state, created) VALUES (?, ?, 'planned', ?)", (name, how, now()))
        ids = [one.id for one in chosen]
        change.executemany("INSERT INTO members VALUES (?, ?)", [(name, one) for one in ids])
        change.executemany("UPDATE requests SET state = 'batched' WHERE id = ?", [(one,) for one in ids])
        add_events(change, "batched", ids, name)
    return batch(ledger, name)


def batch(ledger: Ledger, name: str) -> Batch:
    """One batch.

    Raises:
        UserError: there is none of that name.
    """
    found = ledger._connection.execute(f"{_BATCH} WHERE id = ?", (name,)).fetchone()
    if found is None:
        raise UserError(f"there is no batch {name}; `llm-forget requests list` shows all")
    return _read(ledger, found)


def batches(ledger: Ledger) -> list[Batch]:
    """All batches, oldest first."""
    return [_read(ledger, one) for one in ledger._connection.execute(f"{_BATCH} ORDER BY id").fetchall()]


def current(ledger: Ledger) -> Batch | None:
    """The batch whose adapter is served: the last one that is done."""
    found = ledger._connection.execute(f"{_BATCH} WHERE state = 'done' ORDER BY ended DESC, id DESC LIMIT 1").fetchone()
    return None if found is None else _read(ledger, found)


def claim(ledger: Ledger, name: str) -> Batch:
    """Begin a batch, or go on with one that was interrupted. It builds on the adapter that is served now.

    Raises:
        UserError: it is done, rejected, or empty.
    """
    with ledger._change() as change:
        found = batch(ledger, name)
        if found.state not in ("planned", "running"):
            raise UserError(f"the batch {name} is {found.state}; plan a new one with `llm-forget requests batch`")
        if not found.requests:
            raise UserError(f"all requests of the batch {name} were withdrawn; plan a new one")
        before = current(ledger)
        previous = None if before is None else before.id
        if found.state == "running" and found.previous != previous:
            raise UserError(
                f"the batch {name} builds on {found.previous or 'the base'}, and {previous} was done meanwhile; reject it with "
                "`llm-forget requests reject` and plan a new one"
            )
        change.execute("UPDATE batches SET state = 'running', previous = ? WHERE id = ?", (previous, name))
        if found.state == "planned":
            add_events(change, "begun", found.requests, name)
    return batch(ledger, name)


def earlier(ledger: Ledger, name: str) -> list[str]:
    """The requests of other batches that must stay forgotten, also those that came back and wait in another batch."""
    own = set(batch(ledger, name).requests)
    known = ledger.requests("forgotten", "answered", "returned", "batched", "open")
    return [one.id for one in known if one.id not in own and forgotten_at(ledger, one.id) is not None]


def finish(
    ledger: Ledger, name: str, tests: Sequence[Measured], adapter: str, seconds: float, *, keep: bool = False
) -> Batch:
    """End a batch with the tests of its own and of all earlier requests.

    If its own rows are not forgotten, or those of an earlier request came back, it is rejected: the adapter before stays the
    one that is served, and its requests are open again.

    Args:
        ledger: the ledger.
        name: the batch.
        tests: one for each of its requests and of the earlier ones.
        adapter: digest of its adapter.
        seconds: what it cost.
        keep: serve its adapter in any case; requests that came back are then in the state returned.

    Raises:
        UserError: it is not running, or a test is missing.
    """
    with ledger._change() as change:
        found = batch(ledger, name)
        if found.state != "running":
            raise UserError(f"the batch {name} is {found.state}, not running")
        wanted = {*found.requests, *earlier(ledger, name)}
        if {one.request for one in tests} != wanted:
            raise UserError(
                f"the batch {name} needs a test of each of {len(wanted)} requests, and {len(tests)} were given"
            )
        good = keep or not any(one.verdict in ("returned", "not reached") for one in tests)
        _keep_tests(ledger, name, tests)
        change.execute(
            "UPDATE batches SET state = ?, ended = ?, adapter = ?, seconds = ? WHERE id = ?",
            ("done" if good else "rejected", now(), adapter, seconds, name),
        )
        verdicts = {one.request: one.verdict for one in tests}
        for one in found.requests:
            forgotten = good and verdicts[one] != "not reached"
            known = _answered(ledger, one)  # then it had come back
            state = ("answered" if known else "forgotten") if forgotten else ("returned" if known else "open")
            change.execute("UPDATE requests SET state = ? WHERE id = ?", (state, one))
        add_events(change, "done" if good else "rejected", found.requests, name)
        if good:
            _mark_returned(ledger, name, tests)
    return batch(ledger, name)


def retested(ledger: Ledger, name: str, tests: Sequence[Measured]) -> None:
    """Record another test of the adapter of a batch, at any time later. What came back is due again."""
    with ledger._change():
        _keep_tests(ledger, name, tests)
        _mark_returned(ledger, name, tests)


def reject(ledger: Ledger, name: str) -> Batch:
    """Give up a batch that is planned or was interrupted. Its requests are open again.

    Raises:
        UserError: it has ended.
    """
    with ledger._change() as change:
        found = batch(ledger, name)
        if found.state not in ("planned", "running"):
            raise UserError(f"the batch {name} is {found.state}")
        change.execute("UPDATE batches SET state = 'rejected', ended = ? WHERE id = ?", (now(), name))
        for one in found.requests:
            state = "returned" if _answered(ledger, one) else "open"
            change.execute("UPDATE requests SET state = ? WHERE id = ?", (state, one))
        add_events(change, "rejected", found.requests, name)
    return batch(ledger, name)


def forgotten_at(ledger: Ledger, request: str) -> Measured | None:
    """The test of a request right after the batch that forgot it, if its adapter was served; None if there is none."""
    query = (
        "SELECT request, before, value, low, high, verdict FROM tests JOIN batches ON batches.id = tests.batch "
        "WHERE request = ? AND verdict IN ('forgotten', 'not known before') AND state = 'done' ORDER BY seq DESC LIMIT 1"
    )
    found = ledger._connection.execute(query, (request,)).fetchone()
    return None if found is None else Measured(*found)


def _keep_tests(ledger: Ledger, name: str, tests: Sequence[Measured]) -> None:
    rows = [(now(), name, one.request, one.before, one.value, one.low, one.high, one.verdict) for one in tests]
    columns = "at, batch, request, before, value, low, high, verdict"
    ledger._connection.executemany(f"INSERT INTO tests ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _mark_returned(ledger: Ledger, name: str, tests: Sequence[Measured]) -> None:
    came_back = [one.request for one in tests if one.verdict == "returned"]
    for one in came_back:
        ledger._connection.execute(
            "UPDATE requests SET state = 'returned' WHERE id = ? AND state IN ('forgotten', 'answered')", (one,)
        )
    add_events(ledger._connection, "returned", came_back, name)


def _answered(ledger: Ledger, request: str) -> bool:
    return ledger._connection.execute("SELECT 1 FROM answers WHERE request = ?", (request,)).fetchone() is not None


def _read(ledger: Ledger, row: tuple[str, str, str, str | None, str | None, float | None]) -> Batch:
    name, how, state, previous, adapter, seconds = row
    found = ledger._connection.execute("SELECT request FROM members WHERE batch = ? ORDER BY request", (name,))
    return Batch(name, how, state, previous, tuple(one for (one,) in found), adapter, seconds)
