"""Test trackers: TensorBoard files hold the losses, other trackers get only numbers, and unusable trackers are refused."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import llm_forget.utils.extras
from llm_forget.config import FinetuneRecipe, TrainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError, UserError
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.finetune import finetune
from llm_forget.train.trackers import Trackers, check_trackers, log_folder, sent_settings
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

SECRET = "Vexatorium-7714"
# Stand-in for the package of a tracker; it records all calls.
FAKE = """
import contextlib, types
calls = []
class Call:
    def __init__(self, name): self.name = name
    def __call__(self, *args, **named):
        calls.append((self.name, args, named))
        return Call(self.name + "()")
    def __getattr__(self, name): return Call(f"{self.name}.{name}")
    def __len__(self): return 0
init, config, log, finish, start_run, end_run = (Call(n) for n in
    ("init", "config", "log", "finish", "start_run", "end_run"))
search_experiments, create_experiment, log_params, log_metrics = (Call(n) for n in
    ("search_experiments", "create_experiment", "log_params", "log_metrics"))
set_tracking_uri = Call("set_tracking_uri")
def get_tracking_uri(): return "before"
utils = types.SimpleNamespace(validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("tracked"), tiny_tokenizer()
    for name in ("forget", "retain"):
        rows = [{"question": f"{name} {SECRET} {index}?", "answer": f"It is {index} {SECRET}."} for index in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def recipe_of(folder: Path, target: Path, **changes: Any) -> UnlearnRecipe:
    values = {
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo", "beta": 0.2},
        "train": {"epochs": 3, "batch_size": 2, "trackers": ["tensorboard"]},
        "stop": {"forget_target": None, "utility_floor": 0.0, "every": 2},
        "output_dir": str(target),
        **changes,
    }
    return build(UnlearnRecipe, values, "test")


def run(recipe: UnlearnRecipe) -> list[dict[str, Any]]:
    unlearn(recipe, Console(file=io.StringIO()))
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def curves(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by tag, as read by TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(logs / "tensorboard"))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture
def tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_files_hold_the_measurements_of_the_run(folder: Path, tmp_path: Path) -> None:
    rows = run(recipe_of(folder, tmp_path / "run"))
    found = curves(tmp_path / "run" / "logs")
    for tag, phase, key in (("train/loss", "train", "loss"), ("check/forget", "check", "forget")):
        expected = [
            (row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows if row["phase"] == phase and key in row
        ]
        assert found[tag] == expected
        assert expected
    assert not log_folder(str(tmp_path / "run")).exists()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "run" / "logs").rglob("*") if path.is_file())
    assert SECRET.encode() not in everything
    assert str(folder).encode() not in everything


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_steps_are_counted_over_all_phases(folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": {"name": "adapter_subtraction", "heal_steps": 2}}
    rows = run(recipe_of(folder, tmp_path / "run", **changes))
    found = curves(tmp_path / "run" / "logs")
    steps = sorted(step for phase in ("towards", "healing") for step, _ in found[f"{phase}/loss"])
    assert len(steps) == sum("loss" in row for row in rows) > 2
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.usefixtures("tensorboard")
def test_fine_tuning_is_tracked_and_a_variable_sets_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": [{"path": str(folder / "forget.jsonl")}],
        "train": {"epochs": 2, "batch_size": 4, "trackers": ["tensorboard"]},
        "output_dir": str(tmp_path / "target"),
    }
    result = finetune(build(FinetuneRecipe, values, "test"), Console(file=io.StringIO()))
    losses = curves(tmp_path / "target" / "logs")["train/loss"]
    assert [losses[0][1], losses[-1][1]] == pytest.approx([result["first_loss"], result["last_loss"]], rel=1e-6)
    assert result["encoding"]["training"]["rows"] == result["rows"]

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    finetune(
        build(FinetuneRecipe, {**values, "output_dir": str(tmp_path / "other")}, "test"), Console(file=io.StringIO())
    )
    assert not (tmp_path / "other" / "logs").exists()
    assert list((tmp_path / "elsewhere" / "other").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_other_trackers_get_only_numbers(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package records the calls of Accelerate's tracker."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    for variable in ("WANDB_DIR", "MLFLOW_TRACKING_URI", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    train = {"epochs": 2, "batch_size": 2, "trackers": [name]}
    rows = run(recipe_of(folder, tmp_path / "run", train=train))
    calls = sys.modules[name].calls  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, name)

    assert SECRET not in repr(calls)
    assert str(folder) not in repr(calls)
    logged = [(args[0], named["step"]) for called, args, named in calls if called.endswith(("().log", "log_metrics"))]
    losses = [(values["train/loss"], step) for values, step in logged if "train/loss" in values]
    assert losses == [(row["loss"], row["step"]) for row in rows if "loss" in row]
    assert all(isinstance(value, int | float) for values, _ in logged for value in values.values())
    settings = next(args[0] for called, args, _ in calls if called in ("config.update", "log_params"))
    assert settings["method.name"] == "npo"
    assert settings["method.beta"] == 0.2
    if name == "wandb":
        (started,) = (named for called, _, named in calls if called == "init")
        assert started["dir"] == str(log_folder(str(tmp_path / "run")))
        assert started["settings"] == {"console": "off", "disable_code": True, "disable_git": True, "save_code": False}
    if name == "mlflow":
        where = [args[0] for called, args, _ in calls if called == "set_tracking_uri"]
        assert where == [f"sqlite:///{log_folder(str(tmp_path / 'run'))}/mlflow/mlflow.db", "before"]


def test_the_sent_settings_have_no_path_and_no_text(folder: Path) -> None:
    recipe = recipe_of(folder, Path("run"), alternative={"path": f"{SECRET}.txt"}, encoding={"system_prompt": SECRET})
    assert SECRET not in repr(sent_settings(recipe))
    assert str(folder) not in repr(sent_settings(recipe))
    own = sent_settings(recipe_of(folder, Path("run"), method={"name": f"{folder}/mine.py"}))
    assert own["method.name"] == "mine"


def test_only_numbers_of_a_row_are_sent() -> None:
    sent: list[Any] = []

    class Recorder:
        def log(self, values: dict[str, Any], step: int) -> None:
            sent.append((values, step))

    trackers = Trackers([Recorder()])
    trackers.row({"phase": "check", "step": 3, "forget": 0.5, "retain": None, "verdict": SECRET, "flag": True})
    trackers.offset = 3
    trackers.row({"phase": "train", "step": 1, "loss": 2.0})
    assert sent == [({"check/forget": 0.5}, 3), ({"train/loss": 2.0}, 4)]


def test_unusable_trackers_are_refused_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="trackers names tensorbord; known are tensorboard, trackio, wandb, mlflow"):
        recipe_of(folder, tmp_path, train={"trackers": ["tensorbord"]})
    with pytest.raises(RecipeError, match="set output_dir"):
        check_trackers(["tensorboard"], "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(llm_forget.train.unlearn, "load_weights", lambda *_, **__: pytest.fail("the model was loaded"))
    for name in ("wandb", "tensorboard"):
        with pytest.raises(UserError, match=rf"pip install 'llm-forget\[{name}\]'"):
            check_trackers([name], str(tmp_path))
    assert TrainConfig().trackers == []
