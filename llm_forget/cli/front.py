"""The Pareto front of a search as a table, and the menu over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.cli.console import print_table, print_wrapped
from llm_forget.errors import UserError
from llm_forget.utils.terminal import echo

if TYPE_CHECKING:
    from llm_forget.trials.search import Search
    from llm_forget.trials.slots import Slots

_ACTIONS = "compare | chat N | audit N | keep N DIR | export N DIR | quit"


@dataclass
class Front:
    """What a search has found.

    Attributes:
        search: its settings.
        slots: its trials.
    """

    search: Search
    slots: Slots

    @cached_property
    def trials(self) -> dict[int, Any]:
        """Slot → finished trial with values that ran to its end."""
        return {
            slot: one
            for slot, one in self.slots.finished().items()
            if one.values is not None and "pruned_at" not in one.user_attrs
        }

    @cached_property
    def within(self) -> bool:
        """Whether a trial keeps every floor; otherwise the front is that of all trials."""
        return any(_keeps_floors(one) for one in self.trials.values())

    @cached_property
    def places(self) -> list[int]:
        """The slots of the front, by distance."""
        from llm_forget.trials.front import front

        slots = [slot for slot, one in self.trials.items() if _keeps_floors(one) or not self.within]
        points = [(self.trials[slot].values[0], self.trials[slot].values[1]) for slot in slots]
        return [slots[place] for place in front(points)]

    @property
    def volume(self) -> float | None:
        """The area that the front dominates, as a share of the distance and the harm before anything is done."""
        from llm_forget.trials.front import hypervolume

        start = self.slots.study.user_attrs.get("start")
        if not start:
            return None
        return hypervolume([(one.values[0] / start, one.values[1]) for one in self.trials.values()], (1.0, 1.0))

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        finished = self.slots.finished()
        return {
            "folder": str(self.search.folder),
            "complete": self.slots.complete,
            "distance_to": self.slots.study.user_attrs.get("source"),
            "hypervolume": self.volume,
            "floors_kept": self.within,
            "front": self.places,
            "trials": [
                {
                    "trial": slot,
                    "run": str(self.slots.place(slot)),
                    "params": one.params,
                    "distance": None if one.values is None else one.values[0],
                    "harm": None if one.values is None else one.values[1],
                    "broken": {name: value for name, value in one.constraints.items() if value > 0},
                    **one.user_attrs,
                }
                for slot, one in finished.items()
            ],
        }

    def show(self) -> None:
        """Print the table."""
        finished = self.slots.finished()
        failed = [one for one in finished.values() if one.values is None]
        pruned = len(finished) - len(failed) - len(self.trials)
        echo(f"{len(finished)} of {self.search.trials} trials: {pruned} ended early, {len(failed)} failed")
        if not self.places:
            print_wrapped("No trial ran to its end; the logs are in " + str(self.search.folder / "trials"))
            return
        kept = sorted(
            {name for slot in self.places for name in self.trials[slot].user_attrs if name.startswith("kept_")}
        )
        head = ["trial", "method", "distance", "harm", "forget", *(name.removeprefix("kept_") for name in kept), "rank"]
        rows = []
        for slot in self.places:
            one = self.trials[slot]
            numbers = [one.values[0], one.values[1], one.user_attrs["forget"], *(one.user_attrs[name] for name in kept)]
            rows.append(
                [str(slot), one.params["method"], *(f"{value:.3f}" for value in numbers), str(one.params["rank"])]
            )
        print_table(head, rows)
        source = self.slots.study.user_attrs.get("source", "targets")
        print_wrapped(
            f"distance: of the forget rows' log-probs and entropies to those of the {source}, in nats per token; "
            "harm: largest share of probability lost" + ("" if self.within else ". NO TRIAL KEEPS EVERY FLOOR")
        )
        if self.volume is not None:
            echo(f"dominated area: {self.volume:.3f} of 1")
        for slot in self.places[:3]:
            echo(f"  llm-forget chat {self.slots.place(slot)}")


def line_of_trial(slot: int, trial: Any) -> str:
    """A finished trial in one line."""
    from llm_forget.trials.slots import Result, why_failed
    from llm_forget.trials.worker import line_of

    values = trial.values or (0.0, 0.0)
    result = Result(values[0], values[1], dict(trial.constraints), dict(trial.user_attrs), why_failed(trial))
    return line_of(slot, trial.params, result)


def _keeps_floors(trial: Any) -> bool:
    return all(value <= 0 for value in trial.constraints.values())


def show_menu(found: Front) -> None:
    """Ask for actions on the trials of the front until the answer is quit or empty."""
    while True:
        try:
            words = input(f"{_ACTIONS}> ").split()
        except EOFError:
            return
        if not words or words[0] in ("q", "quit"):
            return
        try:
            _act(found, words)
        except UserError as error:
            echo(f"error: {error}")


def _act(found: Front, words: list[str]) -> None:
    action, *rest = words
    if action == "compare":
        from llm_forget.cli.compare import compare

        compare([found.slots.place(slot) for slot in found.places], to=found.search.folder / "front.html")
        return
    actions: dict[str, Callable[[Path, list[str]], None]] = {
        "chat": _chat,
        "audit": _audit,
        "keep": _keep,
        "export": _export,
    }
    if action not in actions or not rest or not rest[0].isdigit() or int(rest[0]) not in found.trials:
        raise UserError(f"give one of: {_ACTIONS}; N is one of {', '.join(map(str, found.places))}")
    actions[action](found.slots.place(int(rest[0])), rest[1:])


def _chat(run: Path, _: list[str]) -> None:
    from llm_forget.cli.chat import chat

    chat(run, question=None, base=None, max_new_tokens=64, as_json=False)


def _audit(run: Path, _: list[str]) -> None:
    from llm_forget.cli.audit import run_audit, show

    roles: dict[str, Path | None] = dict.fromkeys(("target", "oracle", "sham"))
    rows: dict[str, Path | None] = dict.fromkeys(("forget", "holdout", "retain"))
    show(run_audit(run, roles, rows, {"quick": True}, None, (None, None, ""), None))


def _keep(run: Path, rest: list[str]) -> None:
    if len(rest) != 1:
        raise UserError("give the folder to copy the run to, for example: keep 7 runs/mine")
    to = Path(rest[0])
    if to.exists():
        raise UserError(f"{to} exists; give another folder")
    try:
        shutil.copytree(run, to)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror or error}") from error
    echo(to)


def _export(run: Path, rest: list[str]) -> None:
    if len(rest) != 1:
        raise UserError("give the folder to write, for example: export 7 exported")
    from llm_forget.adapters.export import export_adapter
    from llm_forget.adapters.lora import load_adapter, read_base_record
    from llm_forget.utils.output import writing

    to = Path(rest[0])
    with writing(to, "the folder"):
        base = read_base_record(run / "adapter")
        done = export_adapter(run / "adapter", to, max_rank=load_adapter(run / "adapter").rank, base=base)
    echo(done.folder)
