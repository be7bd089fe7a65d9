"""Experiment trackers (TensorBoard, trackio, W&B, MLflow) through Accelerate. They get only numbers, never text of the data.

One tracker covers all phases of a run. It writes to ``<output_dir>.logs``, which is copied to the run folder at the end. The
tracker's own environment variable overrides this: ``TENSORBOARD_LOGGING_DIR``, ``WANDB_DIR``, ``MLFLOW_TRACKING_URI``. trackio
stores all runs in its own folder (``TRACKIO_DIR``), where ``trackio show`` finds them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.errors import RecipeError, UserError
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import next_to
from llm_forget.utils.written import TRACKED, remove_written

LOGS = "logs"  # subfolder of a run folder for the trackers' files
_PROJECT = "llm-forget"
_SECTIONS = ("train", "adapter", "stop", "retain", "method", "seed", "forget_weight")


def check_trackers(names: list[str], output_dir: str) -> None:
    """Check before any computation that the trackers of a recipe are installed.

    Args:
        names: known trackers, from ``train.trackers``.
        output_dir: the run folder; empty if nothing is written.

    Raises:
        UserError: a package is missing, or there is no folder to write to.
    """
    if names and not output_dir:
        raise RecipeError("train.trackers: trackers write to the run folder; set output_dir")
    for name in names:
        require_extra(name, f"train.trackers: {name}", name)


def log_folder(output_dir: str) -> Path:
    """The folder that trackers write to until the run is complete, next to the run folder."""
    return next_to(output_dir, LOGS)


class Trackers:
    """Sends a run's metrics to its trackers, from the main process only.

    Args:
        started: running trackers of Accelerate.
    """

    def __init__(self, started: list[Any]) -> None:
        self._started = started
        # Number of steps in finished phases, because trackers need a step count that only increases.
        self.offset = 0
        self._last = 0

    def row(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of one row of metrics, with the phase as prefix of their names."""
        before = 0 if row["phase"] == "check" else self.offset  # the step of a check already counts all phases
        step = self._last = max(self._last, before + int(row["step"]))
        values = {f"{row['phase']}/{key}": value for key, value in row.items() if key != "step" and _is_number(value)}
        for tracker in self._started:
            tracker.log(values, step=step)


@contextmanager
def tracking(
    output_dir: str, names: Sequence[str], settings: Mapping[str, Any], *, resume: bool = False
) -> Iterator[Trackers]:
    """Start the trackers of a run, and finish them at the end, also after an error.

    Args:
        output_dir: the run folder.
        names: the trackers.
        settings: from ``sent_settings``.
        resume: keep the trackers' files from before the interruption.

    Raises:
        UserError: a tracker cannot be started.
    """
    names = names if PartialState().is_main_process else []
    folder = log_folder(output_dir) if names else Path()
    if names and not resume:
        remove_written(folder, TRACKED)
    with ExitStack() as ending:
        yield Trackers([_start(name, folder, Path(output_dir).name, settings, ending) for name in names])


def keep_logs(output_dir: str, names: Sequence[str], folder: Path) -> None:
    """Copy the trackers' files to ``folder``, the new run folder, without symbolic links."""
    logs = log_folder(output_dir)
    if names and logs.is_dir():
        shutil.copytree(logs, folder / LOGS, ignore=_links, dirs_exist_ok=True)


def drop_logs(output_dir: str, names: Sequence[str]) -> None:
    """Remove the trackers' files after they were copied to the run folder. Other files stay, and so does their folder."""
    if names:
        remove_written(log_folder(output_dir), TRACKED)


def sent_settings(recipe: UnlearnRecipe | FinetuneRecipe) -> dict[str, Any]:
    """The numbers of a recipe by dotted key, and the names of method and retain term, without paths and other text."""
    values = asdict(recipe)
    sent = {
        key: value
        for section in _SECTIONS
        for key, value in _flat(section, values.get(section))
        if _is_number(value) or isinstance(value, bool)
    }
    for section in ("method", "retain"):
        name = (values.get(section) or {}).get("name")
        if name is not None:
            sent[f"{section}.name"] = Path(name).stem  # without the path of a user's own file
    return sent


def _start(name: str, folder: Path, run_name: str, settings: Mapping[str, Any], ending: ExitStack) -> Any:
    try:
        tracker = _STARTERS[name](folder, run_name, ending)
        tracker.start()
        ending.callback(tracker.finish)
        tracker.store_init_configuration(dict(settings))
    except Exception as error:  # an external service can raise any error
        raise UserError(
            f"train.trackers: {name} could not be started ({type(error).__name__}: {error}); log in to it, use its offline "
            "mode, or remove it from the recipe"
        ) from error
    return tracker


def _tensorboard(folder: Path, run_name: str, ending: ExitStack) -> Any:
    from accelerate.tracking import TensorBoardTracker

    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    return TensorBoardTracker(run_name if given else "tensorboard", logging_dir=given or folder)


def _trackio(folder: Path, run_name: str, ending: ExitStack) -> Any:
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(os.environ.get("TRACKIO_PROJECT", _PROJECT), name=run_name)


def _wandb(folder: Path, run_name: str, ending: ExitStack) -> Any:
    from accelerate.tracking import WandBTracker

    # do not upload console output, code, notebooks or git state, which may contain text of the data
    silent = {"console": "off", "disable_code": True, "disable_git": True, "save_code": False}
    where = {} if "WANDB_DIR" in os.environ else {"dir": str(folder)}
    folder.mkdir(parents=True, exist_ok=True)  # if it does not exist, wandb writes to a temporary folder
    return WandBTracker(os.environ.get("WANDB_PROJECT", _PROJECT), name=run_name, settings=silent, **where)


def _mlflow(folder: Path, run_name: str, ending: ExitStack) -> Any:
    import mlflow
    from accelerate.tracking import MLflowTracker

    if "MLFLOW_TRACKING_URI" in os.environ:
        return MLflowTracker(_PROJECT, run_name=run_name)
    own = (folder / "mlflow").resolve()
    own.mkdir(parents=True, exist_ok=True)
    ending.callback(mlflow.set_tracking_uri, mlflow.get_tracking_uri())  # restore the caller's URI at the end
    mlflow.set_tracking_uri(f"sqlite:///{own / 'mlflow.db'}")
    return MLflowTracker(_PROJECT, run_name=run_name, logging_dir=str(own))


_STARTERS = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb, "mlflow": _mlflow}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}", item)
    else:
        yield prefix, value


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_symlink()]
