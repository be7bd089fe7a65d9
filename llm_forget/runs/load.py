"""Read run folders as a table: one row for each run, with its recipe, metrics, intervals, cost and digests.

The table holds names, numbers and digests, and no text of any data set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.errors import UserError
from llm_forget.evaluation.results import StoredResults
from llm_forget.runs.differences import differences
from llm_forget.runs.frames import make_frame
from llm_forget.runs.run_files import (
    RECIPE_NAME,
    RESULT_NAME,
    check_identity,
    read_environment,
    read_evaluations,
    read_metrics,
    read_recipe,
    read_result,
)
from llm_forget.utils.files import tidy_files, tidy_folders

if TYPE_CHECKING:
    import pandas as pd

_DEPTH = 3  # search depth below the given folder: runs/demo/npo is at depth 2 in runs
_TRACKER_FOLDERS = frozenset(("tensorboard", "mlruns", "wandb", "trackio", "mlflow"))


# Columns that every table of runs has.
RECORD = ("kind", "role", "method", "path", "reason", "seconds", "steps")


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder.
        name: its path relative to the folder that was searched.
        kind: "unlearn", "finetune", or "evaluation" for a folder that holds measurements only.
        recipe: the recipe with all defaults.
        result: ``result.json``.
        environment: versions and hardware.
        evaluations: suite → results.
        metrics: the rows of ``metrics.jsonl``.
        problems: notes about parts that could not be read, were edited, or are of another model.
    """

    path: Path
    name: str
    kind: str
    recipe: dict[str, Any] = field(repr=False)
    result: dict[str, Any] = field(repr=False)
    environment: dict[str, Any] = field(repr=False)
    evaluations: dict[str, StoredResults] = field(repr=False)
    metrics: list[dict[str, Any]] = field(default_factory=list, repr=False)
    problems: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name; "finetune" for fine-tuning, "" if there is none."""
        return str(self.result.get("method") or ("finetune" if self.kind == "finetune" else ""))

    def curves(self) -> pd.DataFrame:
        """The trainer's log, one row for each step.

        Columns: ``phase`` (train, heal, …), ``step`` (counted across phases), ``loss``, ``forget_loss``, …
        """
        rows = [row for row in self._log() if row["phase"] != "check" and "loss" in row]
        return make_frame(rows)

    def checks(self) -> pd.DataFrame:
        """The run's checks: ``step``, ``forget``, ``retain`` (mean answer probabilities) and ``verdict``.

        A method that searches for a strength checks several times after the same step; ``order`` numbers all checks.
        """
        measured = [row for row in self._log() if row["phase"] == "check"]
        ends = [self.result[key] for key in ("before", "after") if isinstance(self.result.get(key), Mapping)]
        rows = [*ends[:1], *measured]
        known = [_measures(row) for row in rows]
        rows += [row for row in ends[1:] if _measures(row) not in known]
        return make_frame([{"order": order, **row} for order, row in enumerate(rows)])

    def _log(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        before, last, phase = 0, 0, None
        for row in self.metrics:
            row = dict(row)
            if row["phase"] != "check":
                if phase is not None and row["phase"] != phase:
                    before, last = before + last, 0  # the next trainer starts at step 1 again
                phase, last = row["phase"], max(last, row["step"])
                row["step"] = before + row["step"]
            rows.append(row)
        return rows

    def suite(self, name: str | None = None) -> StoredResults | None:
        """The results of a suite; by default of the one with the most numbers."""
        if name is not None:
            return self.evaluations.get(name)
        return max(self.evaluations.values(), key=lambda found: len(found.scores), default=None)


def load_run(path: str | Path, name: str | None = None) -> Run:
    """Read one run folder.

    Args:
        path: the folder.
        name: the run's name; by default the folder's.

    Raises:
        UserError: the folder does not exist, or holds no complete run.
    """
    folder = Path(path)
    problem = _no_run(folder)
    if problem is not None:
        raise UserError(f"{folder}: {problem}")
    for part in (folder, folder / "eval"):
        tidy_files(part)
    problems: list[str] = []
    result = read_result(folder, problems)
    recipe = read_recipe(folder, problems)
    environment = read_environment(folder, result, problems)
    evaluations = read_evaluations(folder, problems)
    kind = "unlearn" if "method" in result else "finetune" if (folder / RESULT_NAME).is_file() else "evaluation"
    if kind == "evaluation" and not evaluations:
        raise UserError(f"{folder}: {problems[0] if problems else 'holds no result.json and no results'}")
    check_identity(folder, result, evaluations, problems)
    metrics = read_metrics(folder, problems)
    return Run(folder, name or folder.name, kind, recipe, result, environment, evaluations, metrics, tuple(problems))


def find_runs(paths: str | Path | Iterable[str | Path]) -> tuple[list[Run], dict[str, str]]:
    """Find all runs in folders and their subfolders.

    Args:
        paths: a folder to search, a run folder, or several of either.

    Returns:
        The runs in the order of the paths, each with a name of its own, and path → reason for every skipped folder.

    Raises:
        UserError: a path does not exist.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    runs: dict[Path, Run] = {}
    skipped: dict[str, str] = {}
    for root in map(Path, given):
        if not root.exists():
            raise UserError(f"{root} does not exist; give a run folder, or a folder that holds run folders")
        for folder in _candidates(root, skipped):
            name = folder.resolve().name if folder == root else folder.relative_to(root).as_posix()
            try:
                runs.setdefault(folder.resolve(), load_run(folder, name))
            except (UserError, OSError) as error:
                skipped[str(folder)] = str(error).removeprefix(f"{folder}: ")
    return _named_apart(list(runs.values())), skipped


def _measures(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("step"), row.get("forget"), row.get("retain")


def _named_apart(runs: list[Run]) -> list[Run]:
    """The runs; those with one name get the shortest end of their path that tells them apart."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    taken = {name for name, same in by_name.items() if len(same) == 1}
    names: dict[Path, str] = {}
    for same in by_name.values():
        if len(same) == 1:
            continue
        paths = {run.path: run.path.resolve().parts for run in same}
        for run in same:
            name = next(
                end
                for length in range(2, len(paths[run.path]) + 2)
                if (end := "/".join(paths[run.path][-length:])) not in taken
                and sum(parts[-length:] == paths[run.path][-length:] for parts in paths.values()) == 1
            )
            names[run.path] = name
            taken.add(name)
    return [replace(run, name=names.get(run.path, run.name)) for run in runs]


def load_runs(paths: str | Path | Iterable[str | Path], *, suite: str | None = None) -> pd.DataFrame:
    """Read run folders as a table.

    Args:
        paths: a folder to search, or run folders.
        suite: the suite whose metrics have plain column names; by default the one that most runs were evaluated on.
            Metrics of other suites are named ``<suite>/<metric>``.

    Returns:
        One row for each run, indexed by name. Columns: ``kind``, ``role`` (target, oracle, unlearned, …), ``method``, ``reason``,
        ``seconds``, ``steps``, recipe fields as ``recipe.train.epochs``, digests as ``digest.base`` and ``digest.data.forget``,
        each metric as ``forget.probability`` with ``.low``, ``.high`` and ``.n``. ``attrs["skipped"]``: path → why a folder
        was skipped; ``attrs["suite"]``; ``attrs["directions"]``: metric → which end means forgotten;
        ``attrs["never_learned"]``: sets that no model was trained on; ``attrs["problems"]``: run → notes on parts that are
        damaged, edited or of another model; ``attrs["notes"]``: how the runs differ that are compared.

    Raises:
        UserError: a path does not exist, or pandas is missing.
    """
    runs, skipped = find_runs(paths)
    return frame_of(runs, skipped, suite)


def frame_of(runs: Sequence[Run], skipped: Mapping[str, str] | None = None, suite: str | None = None) -> pd.DataFrame:
    """The table of loaded runs, see ``load_runs``."""
    counted = Counter(name for run in runs for name in run.evaluations if not name.startswith("capability-"))
    chosen = suite or min(counted, key=lambda name: (-counted[name], name), default=None)
    roles = _roles(runs)
    rows = [_row(run, roles[run.path], chosen) for run in runs]
    frame = make_frame(rows, index={"run": [run.name for run in runs]}, columns=None if rows else RECORD)
    directions = {
        _column(name, key, chosen): score.forgotten
        for run in runs
        for name, found in run.evaluations.items()
        for key, score in found.scores.items()
    }
    frame.attrs = {"skipped": dict(skipped or {}), "suite": chosen, "directions": directions}
    attacks = [found.raw.get("attacks") or {} for run in runs for found in run.evaluations.values()]
    frame.attrs["never_learned"] = {one["nonmembers"] for one in attacks if "nonmembers" in one}
    frame.attrs["problems"] = {run.name: list(run.problems) for run in runs if run.problems}
    frame.attrs["notes"] = differences(runs, roles, chosen)
    return frame


def _no_run(folder: Path) -> str | None:
    if not folder.is_dir():
        return "is not a folder" if folder.exists() else "does not exist; give a run folder, for example runs/demo/npo"
    if (folder / RESULT_NAME).is_file() or any((folder / "eval").glob("*.json")):
        return None
    if folder.name.startswith("."):
        return "a temporary folder of an interrupted run; delete it"
    if (folder / RECIPE_NAME).is_file():
        return "has no result.json: the run was not completed; run it again"
    return "is not a run folder"


def _candidates(root: Path, skipped: dict[str, str], depth: int = _DEPTH) -> Iterator[Path]:
    """Yield folders that hold a run or an incomplete one; add other folders to ``skipped``."""
    problem = _no_run(root)
    if problem is None or problem.startswith(("has no", "a temporary")):
        yield root
        return
    if not root.is_dir():
        return
    try:
        tidy_folders(root)
        inside = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as error:
        skipped[str(root)] = f"cannot be read ({error.strerror})"
        return
    if root.name in _TRACKER_FOLDERS:
        skipped[str(root)] = "a tracker's logs"
        return
    found = [one for entry in inside if depth for one in _candidates(entry, skipped, depth - 1)]
    if not found:
        for entry in inside:
            skipped.pop(str(entry), None)
        skipped[str(root)] = "holds no run"
    yield from found


def _roles(runs: Sequence[Run]) -> dict[Path, str]:
    """Each run's role. The target is the model that unlearning runs started from; an oracle is recognised by its name."""
    bases = {Path(str((run.recipe.get("model") or {}).get("name", ""))).parts[-2:] for run in runs if run.method}
    roles = {}
    for run in runs:
        if run.kind == "unlearn":
            roles[run.path] = "unlearned"
        elif "oracle" in run.path.name.lower() or "retrain" in run.path.name.lower():
            roles[run.path] = "oracle"
        elif (run.path.name, "model") in bases or "target" in run.path.name.lower():
            roles[run.path] = "target"
        else:
            roles[run.path] = run.kind
    return roles


def _row(run: Run, role: str, chosen: str | None) -> dict[str, Any]:
    result = run.result
    row: dict[str, Any] = {"kind": run.kind, "role": role, "method": run.method, "path": str(run.path)}
    row |= {key: result.get(key) for key in ("reason", "seconds", "steps", "forget_rows", "retain_rows", "rows")}
    for moment in ("before", "after"):
        row |= {f"{moment}.{key}": value for key, value in (result.get(moment) or {}).items() if key != "step"}
    row |= {key: result.get(key) for key in ("forget_target", "utility_floor", "known_before")}
    row |= {f"details.{key}": value for key, value in (result.get("details") or {}).items()}
    row["digest.base"] = result.get("base_digest")
    row |= {f"digest.data.{key}": value for key, value in (result.get("data_digests") or {}).items()}
    for key, value in flatten(run.recipe).items():
        row[f"recipe.{key}"] = (json.dumps(value) if value else None) if isinstance(value, list | dict) else value
    row["evaluation_seconds"] = sum(found.seconds for found in run.evaluations.values()) or None
    row["llm_forget"] = run.environment.get("llm_forget")
    for name, found in run.evaluations.items():
        for key, score in found.scores.items():
            column = _column(name, key, chosen)
            row[column] = score.value
            row |= {f"{column}.low": score.low, f"{column}.high": score.high, f"{column}.n": score.n}
        row |= {_column(name, f"digest.{key}", chosen): digest for key, digest in found.digests.items()}
    return row


def _column(suite: str, key: str, chosen: str | None) -> str:
    return key if suite == chosen else f"{suite}/{key}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty mapping stays a value."""
    found: dict[str, Any] = {}
    for key, item in values.items():
        if isinstance(item, Mapping) and item:
            found |= flatten(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found
