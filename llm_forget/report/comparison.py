"""Runs to compare, with the target and the oracle among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.errors import UserError
from llm_forget.evaluation.verdict import Verdict
from llm_forget.report.words import judge_run
from llm_forget.runs import Run, find_runs, frame_of
from llm_forget.runs.comparison import compare, find_row
from llm_forget.runs.differences import differences
from llm_forget.runs.load import RECORD

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Comparison:
    """Runs, their table, and the names of the target and the oracle.

    Attributes:
        runs: the runs.
        frame: their table, from ``load_runs``.
        target: name of the run before unlearning, or of the requested baseline; None if there is none.
        oracle: name of the run of the model that never saw the forget set; None if there is none.
    """

    runs: list[Run]
    frame: pd.DataFrame
    target: str | None
    oracle: str | None

    def run(self, name: str | None) -> Run | None:
        """The run of that name, or None."""
        return next((run for run in self.runs if run.name == name), None)

    def unlearned(self) -> list[Run]:
        """The unlearning runs."""
        return [run for run in self.runs if self.frame.loc[run.name, "role"] == "unlearned"]

    def verdict(self, run: Run) -> Verdict:
        """The verdict on a run, by the suite whose metrics have plain names in the table, and what makes it doubtful."""
        target, oracle = self.run(self.target), self.run(self.oracle)
        found = judge_run(run, target=target, oracle=oracle, suite=self.frame.attrs["suite"])
        controls = [one for one in (target, oracle) if one is not None and one.name != run.name]
        return replace(found, notes=[*found.notes, *run.problems, *(_said(one) for one in controls if one.problems)])

    @property
    def notes(self) -> list[str]:
        """How the runs differ that are compared, and what is damaged, edited or of another model in each of them."""
        problems = self.frame.attrs["problems"]
        return [*self.frame.attrs["notes"], *(f"{name}: {one}" for name, found in problems.items() for one in found)]

    def changes(self) -> pd.DataFrame | None:
        """Every run's change from the target (``compare``); None without a target."""
        return None if self.target is None or self.frame.empty else compare(self.frame, self.target)


def _said(control: Run) -> str:
    return f"{control.name}, with which it is compared: {'; '.join(control.problems)}"


def load_comparison(paths: Iterable[str | Path], baseline: str | None = None) -> Comparison:
    """Read runs to compare.

    Args:
        paths: run folders, or folders that hold some.
        baseline: name or role of the run to compare with; by default the target, if there is exactly one.

    Raises:
        UserError: a path does not exist, there is no run, or no run has that name or role.
    """
    runs, skipped = find_runs(paths)
    if not runs:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:5])
        raise UserError(f"no run was found{f' ({reasons})' if reasons else ''}; give run folders, for example runs/*")
    frame = frame_of(runs, skipped)
    target = only_run_with(frame, "target") if baseline is None else find_row(frame, baseline)
    return Comparison(runs, frame, target, only_run_with(frame, "oracle"))


def load_around(folder: Path, target: str | Path | None = None, oracle: str | Path | None = None) -> Comparison:
    """Read one run, the first of the result, with its target and oracle.

    Args:
        folder: the run folder.
        target: the target's run folder; by default the only target among the folder's siblings.
        oracle: the oracle's; likewise.

    Raises:
        UserError: there is no complete run in a folder.
    """
    given = [Path(one) for one in (target, oracle) if one is not None]
    runs, skipped = find_runs([folder, *given])
    if not runs or runs[0].path != folder:
        problem = skipped.get(str(folder), "holds no run; use llm-forget compare for a folder of runs")
        raise UserError(f"{folder}: {problem}")
    siblings, _ = find_runs(_folders_around(folder))
    paths, names = {run.path.resolve() for run in runs}, {run.name for run in runs}
    runs += [run for run in siblings if run.path.resolve() not in paths and run.name not in names]
    suite = runs[0].suite()
    frame = frame_of(runs, suite=suite.suite if suite else None)
    found = [_named(frame, runs, one, role) for one, role in ((target, "target"), (oracle, "oracle"))]
    shown = list(dict.fromkeys([runs[0].name, *(name for name in found if name)]))
    return Comparison([run for run in runs if run.name in shown], _rows_of(frame, runs, shown), *found)


def _folders_around(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.resolve().parent.iterdir()) if path.is_dir()]
    except OSError:  # a parent that cannot be listed has no runs to offer
        return []


def _rows_of(frame: pd.DataFrame, runs: Sequence[Run], shown: Sequence[str]) -> pd.DataFrame:
    """The rows of some runs, without the metrics and settings that none of them has."""
    names = list(frame.index)
    kept = frame.iloc[[names.index(name) for name in shown]]
    empty = [name for name in kept.columns if name not in RECORD and kept[name].isna().all()]
    found = kept.drop(columns=empty)
    roles = {run.path: str(frame.loc[run.name, "role"]) for run in runs}
    problems = {name: lines for name, lines in frame.attrs["problems"].items() if name in shown}
    notes = differences([run for run in runs if run.name in shown], roles, frame.attrs["suite"])
    found.attrs = {**frame.attrs, "problems": problems, "notes": notes}
    return found


def only_run_with(frame: pd.DataFrame, role: str) -> str | None:
    """The name of the only run with a role; None if there is none, or more than one."""
    found = list(frame.index[frame["role"] == role])
    return str(found[0]) if len(found) == 1 else None


def _named(frame: pd.DataFrame, runs: Sequence[Run], given: str | Path | None, role: str) -> str | None:
    if given is None:
        return only_run_with(frame, role)
    found = next((run.name for run in runs if run.path.resolve() == Path(given).resolve()), None)
    if found is None:
        raise UserError(f"{given}: holds no run; give the run folder of the {role}")
    return found
