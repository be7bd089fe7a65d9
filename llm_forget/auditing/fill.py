"""Fill the cells of an audit: load each model in each form once, and run on it the attacks whose cells are missing."""

from __future__ import annotations

import gc
import logging
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from llm_forget.auditing.attack import Access, Attack, Budget, Leaks, Rows
from llm_forget.auditing.cells import cell_key, read_cell, rows_digest, write_cell
from llm_forget.auditing.forms import Form
from llm_forget.auditing.subject import Subject
from llm_forget.data.encode import EncodingConfig
from llm_forget.errors import MissingExtraError, UserError

Place = tuple[str, str, str]  # attack, form, role
Said = Callable[[str], None]


@dataclass(frozen=True)
class Seat:
    """One model in one form.

    Attributes:
        role: model, target, oracle or sham.
        form: the form.
        digest: what identifies its weights; None for a model in memory, whose cells are not kept.
        open: loads it.
        access: what it will allow.
        home: folder of its cells; None keeps them in memory.
        before: digest of the model before unlearning, on which the cells of attacks with access to it depend.
        same_as: the form that it is the same as; cells of both are the same. A model without an adapter has no adapter form.
    """

    role: str
    form: Form
    digest: Any
    open: Callable[[], Subject] = field(repr=False)
    access: Access = Access.CHAT | Access.TOKENS | Access.LOGPS | Access.WEIGHTS
    home: Path | None = None
    before: Any = None
    same_as: Form | None = None


@dataclass(frozen=True)
class Plan:
    """What every cell of an audit has in common.

    Attributes:
        attacks: name → attack, in order.
        rows: the rows.
        budget: the attacker's budget.
        encoding: the prompt settings.
        where: device and dtype of the computation, for the cells' names.
    """

    attacks: dict[str, Attack]
    rows: Rows
    budget: Budget
    encoding: EncodingConfig
    where: str = ""


@dataclass
class Filled:
    """The cells.

    Attributes:
        cells: place → what the attack got, or why there is nothing.
        seconds: place → time of the attack.
        kept: number of cells that were read from disk.
    """

    cells: dict[Place, Leaks | str] = field(default_factory=dict)
    seconds: dict[Place, float] = field(default_factory=dict)
    kept: int = 0


def fill(
    plan: Plan,
    seats: Sequence[Seat],
    say: Said,
    *,
    jobs: int = 1,
    after_form: Callable[[Filled], None] | None = None,
) -> Filled:
    """Run every attack on every seat, except for cells that are on disk.

    Args:
        plan: attacks, rows and budget.
        seats: models and forms, in order; those of one form together.
        say: gets one line per seat.
        jobs: processes that share the seats; their ``open`` must be picklable.
        after_form: called with the cells so far, whenever those of a form are complete.

    Returns:
        The cells. An attack that does not apply, or fails, has its reason in the place of the cell.
    """
    found, digest = Filled(), rows_digest(plan.rows)
    missing, copies = _sorted(plan, seats, digest, found)
    work = [_Work(plan, seat, missing[index], digest) for index, seat in enumerate(seats) if missing[index]]
    clock = _Clock(sum(len(one.names) for one in work))
    open_forms = Counter(one.seat.form.name for one in work)
    if after_form is not None and not work:
        after_form(found)
    for one, results, took in _done(work, jobs):
        form = one.seat.form.name
        for name, result, seconds in results:
            found.cells[name, form, one.seat.role], found.seconds[name, form, one.seat.role] = result, seconds
        for place, known in copies.items():
            if known in found.cells:
                found.cells[place], found.seconds[place] = found.cells[known], 0.0
        clock.ready += len(results)
        say(f"{one.seat.role} on {form}: {len(results)} attacks in {took:.0f} s{clock.left()}")
        open_forms[form] -= 1
        if not open_forms[form] and after_form is not None:
            after_form(found)
    return found


def _sorted(
    plan: Plan, seats: Sequence[Seat], digest: str, found: Filled
) -> tuple[dict[int, list[str]], dict[Place, Place]]:
    """Put cells on disk and excuses into ``found``; return seat → missing attacks, and cell → the cell that it is equal to."""
    missing: dict[int, list[str]] = {index: [] for index in range(len(seats))}
    first: dict[str, Place] = {}
    copies: dict[Place, Place] = {}
    for index, seat in enumerate(seats):
        for name, attack in plan.attacks.items():
            place = (name, seat.form.name, seat.role)
            if why := excuse(attack, seat, plan.rows):
                found.cells[place] = why
                continue
            key = _key(plan, seat, attack, digest)
            kept = None if seat.home is None else read_cell(seat.home, key)
            if kept is not None:
                found.cells[place], found.seconds[place] = kept
                found.kept += 1
            elif seat.same_as is not None and key in first:
                copies[place] = first[key]
            else:
                missing[index].append(name)
                if seat.digest is not None:
                    first.setdefault(key, place)
    return missing, copies


@dataclass(frozen=True)
class _Work:
    """The attacks that one seat lacks."""

    plan: Plan
    seat: Seat
    names: list[str]
    digest: str

    def run(self) -> tuple[list[tuple[str, Leaks | str, float]], float]:
        """Attack the seat; each cell is on disk as soon as it is ready. Returns the results and the seconds."""
        started, results = perf_counter(), []
        for name, result, seconds in _attacked(self.plan, self.seat, self.names):
            if self.seat.home is not None and isinstance(result, Leaks):
                write_cell(
                    self.seat.home, _key(self.plan, self.seat, self.plan.attacks[name], self.digest), result, seconds
                )
            results.append((name, result, seconds))
        return results, perf_counter() - started


def _done(work: Sequence[_Work], jobs: int) -> Iterator[tuple[_Work, list[tuple[str, Leaks | str, float]], float]]:
    """Each piece of work as it is done, in this process or in several."""
    own = any(
        type(attack).__module__.startswith("llm_forget_user_") for one in work for attack in one.plan.attacks.values()
    )
    if min(jobs, len(work)) < 2 or own:  # the class of a file by path cannot be sent to another process
        for one in work:
            yield one, *one.run()
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with get_context("spawn").Pool(
        min(jobs, len(work)), _start, (threads,)
    ) as pool:  # terminates its processes at the end
        for index, results, took in pool.imap_unordered(_run, enumerate(work)):
            yield work[index], results, took


def _start(threads: int) -> None:
    """A new process: signals end it with its parent, libraries are quiet."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its processes
    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    os.environ["TQDM_DISABLE"] = "1"


def _run(numbered: tuple[int, _Work]) -> tuple[int, list[tuple[str, Leaks | str, float]], float]:
    return numbered[0], *numbered[1].run()


def excuse(attack: Attack, seat: Seat, rows: Rows) -> str:
    """Why an attack does not run on a seat; empty if it does."""
    if why := attack.refuses(seat.form):
        return why
    if lacks := [part for part in attack.uses if not getattr(rows, part)]:
        return f"there are no {' and no '.join(lacks)} rows"
    denied = attack.needs & ~seat.access
    if Access.TARGET in denied:
        return "there is no target"
    if denied:
        return f"it needs {' and '.join(one.name.lower() for one in denied if one.name)}, which a server does not give"
    return ""


def _attacked(plan: Plan, seat: Seat, names: Sequence[str]) -> Iterator[tuple[str, Leaks | str, float]]:
    """Load a seat once and attack it; attacks that leave the model alone come first, so that they share their passes."""
    try:
        subject = seat.open()
    except MissingExtraError as error:
        yield from ((name, str(error), 0.0) for name in names)
        return
    for name in sorted(names, key=lambda one: plan.attacks[one].changes_model):
        started = perf_counter()
        try:
            result: Leaks | str = plan.attacks[name].attack(subject, plan.rows, plan.budget)
        except UserError as error:
            result = str(error)
        except Exception as error:
            if os.environ.get("LLM_FORGET_DEBUG") == "1":
                raise
            result = f"failed with {type(error).__name__}"  # without its message, which may quote a row
        yield name, result, perf_counter() - started
    del subject
    gc.collect()


def _key(plan: Plan, seat: Seat, attack: Attack, digest: str) -> str:
    model = [seat.digest, seat.before] if Access.TARGET in attack.needs else seat.digest
    return cell_key(attack, model, seat.same_as or seat.form, digest, plan.budget, plan.encoding, plan.where)


class _Clock:
    """Time left, from the mean time of a cell so far."""

    def __init__(self, total: int) -> None:
        self.total, self.ready, self.started = total, 0, perf_counter()

    def left(self) -> str:
        """The end of a line about the progress."""
        if not self.ready or self.ready == self.total:
            return ""
        seconds = (perf_counter() - self.started) / self.ready * (self.total - self.ready)
        shown = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        return f"; {self.ready} of {self.total} cells, about {shown} left"
