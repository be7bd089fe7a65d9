"""Runs to compare, with the target and the oracle among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.errors import UserError
from llm_forget.evaluation.verdict import Verdict
from llm_forget.report.words import judge_run
from llm_forget.runs import Run, find_runs, frame_of
from llm_forget.runs.comparison import compare, find_row

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
        """The verdict on a run, by the suite whose metrics have plain names in the table."""
        return judge_run(
            run, target=self.run(self.target), oracle=self.run(self.oracle), suite=self.frame.attrs["suite"]
        )

    def changes(self) -> pd.DataFrame | None:
        """Every run's change from the target (``compare``); None without a target."""
        return None if self.target is None or self.frame.empty else compare(self.frame, self.target)


def load_comparison(paths: Iterable[str | Path], baseline: str | None = None) -> Comparison:
    """Read runs to compare.

    Args:
        paths: run folders, or folders that hold some.
        baseline: name or role of the run to compare with; by default the target, if there is exactly one.

    Raises:
        UserError: a path does not exist, or no run has that name or role.
    """
    runs, skipped = find_runs(paths)
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
    siblings, _ = find_runs([path for path in sorted(folder.resolve().parent.iterdir()) if path.is_dir()])
    paths, names = {run.path.resolve() for run in runs}, {run.name for run in runs}
    runs += [run for run in siblings if run.path.resolve() not in paths and run.name not in names]
    suite = runs[0].suite()
    frame = frame_of(runs, suite=suite.suite if suite else None)
    found = [_named(frame, runs, one, role) for one, role in ((target, "target"), (oracle, "oracle"))]
    shown = list(dict.fromkeys([runs[0].name, *(name for name in found if name)]))
    attrs = frame.attrs
    frame = frame.loc[shown].dropna(axis="columns", how="all")
    frame.attrs = attrs
    return Comparison([run for run in runs if run.name in shown], frame, *found)


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
