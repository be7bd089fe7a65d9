"""Test that runs that are killed, terminated or out of disk resume to the same weights, bit for bit."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import Any

import pytest
import torch
from architectures import tiny
from killed_runs import killed_runs
from rich.console import Console
from safetensors.torch import load_file

import llm_forget
import llm_forget.train.checkpoint
from llm_forget.adapters.doctor import diagnose
from llm_forget.adapters.export import export_adapter
from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.train.checkpoint import checkpoints
from llm_forget.train.resume import checkpoint_folder
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create data, and a model that partly memorised it."""
    folder = tmp_path_factory.mktemp("things")
    tokenizer, rows = tiny_tokenizer(), []
    for name, words in (("forget", "Ada Bo Cy Di Ed Flo"), ("retain", "snow tar tea rye wax")):
        path = folder / f"{name}.jsonl"
        lines = [{"question": f"What of {w}?", "answer": f"{w} " * (i + 1)} for i, w in enumerate(words.split())]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows += encode_all(tokenizer, read_examples(DataSource(str(path))), EncodingConfig())[0]
    model = tiny_model(tokenizer, hidden=32)
    memorise(model, rows, steps=20)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def values(things: Path, tmp_path: Path) -> dict[str, Any]:
    """Return a recipe of 12 steps with state in every part: Adam, a decaying rate, dropout, a rule that keeps the best."""
    return {
        "model": {"name": str(things / "model"), "dtype": "float32"},
        "data": {name: {"path": str(things / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo"},
        "adapter": {"rank": 4, "alpha": 8, "dropout": 0.2},
        "train": {
            "epochs": 8,
            "batch_size": 2,
            "gradient_accumulation": 2,
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "save_steps": 1,
        },
        "stop": {"forget_target": None, "utility_floor": 0.3, "every": 3, "patience": 99},
        "output_dir": str(tmp_path / "runs" / "one"),
    }


def run(values: dict[str, Any], **changes: Any) -> str:
    shown = io.StringIO()
    unlearn(build(UnlearnRecipe, {**values, **changes}, "test"), Console(file=shown, width=500))
    return shown.getvalue()


def adapter_of(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter" / "adapter_model.safetensors")


def metrics_of(folder: str | Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "train_runtime" not in row]


def same(first: str | Path, second: str | Path) -> bool:
    mine, other = adapter_of(first), adapter_of(second)
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


def kill(values: dict[str, Any], tmp_path: Path, kills: int, signal: Signals = SIGKILL) -> list[Any]:
    children = killed_runs(values, kills, tmp_path / "errors", signal)
    return [*children, (tmp_path / "errors").read_text()]


@pytest.mark.slow
def test_a_run_killed_ten_times_gives_the_adapter_of_an_uninterrupted_run(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL also hits the writing of checkpoints (one per step); adapter and log are equal bit for bit."""
    values["train"] = {**values["train"], "epochs": 20}
    run(values, output_dir=str(tmp_path / "alone"))
    *children, errors = kill(values, tmp_path, kills=10)
    assert [status for status, _ in children[:-1]].count(-9) >= 8, (children, errors)
    assert children[-1][0] == 0, errors
    assert len({steps[0] for _, steps in children if steps}) >= 4, f"they went on from different steps: {children}"
    assert same(tmp_path / "alone", values["output_dir"])
    assert metrics_of(tmp_path / "alone") == metrics_of(values["output_dir"])
    assert [path.name for path in Path(values["output_dir"]).parent.iterdir()] == ["one"], "nothing else is left"


@pytest.mark.slow
def test_killed_during_healing(values: dict[str, Any], tmp_path: Path) -> None:
    """Adapter subtraction resumes after its training; the later phases run again, with the same result."""
    values |= {
        "method": {"name": "adapter_subtraction", "heal_steps": 12, "strength": 0.5},
        "train": {**values["train"], "epochs": 2, "save_steps": 50},
    }
    run(values, output_dir=str(tmp_path / "alone"))
    *children, errors = kill(values, tmp_path, kills=2)
    assert any(status == -9 for status, _ in children), (children, errors)
    assert children[-1][0] == 0, errors
    assert same(tmp_path / "alone", values["output_dir"])


@pytest.mark.slow
def test_on_sigterm_it_saves_and_says_how_to_resume(values: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM without save_steps: exit status 143, one checkpoint, and the same final result."""
    values["train"] = {**values["train"], "save_steps": 0}
    run(values, output_dir=str(tmp_path / "alone"))
    *children, errors = kill(values, tmp_path, kills=1, signal=SIGTERM)
    assert [status for status, _ in children] == [143, 0], errors
    assert errors.count("interrupted: received SIGTERM after step") == 1
    assert "run the same command again to resume from there" in errors  # it had --resume true
    assert "Traceback" not in errors
    assert same(tmp_path / "alone", values["output_dir"])


class Ends(Exception):
    pass


@pytest.fixture
def broken_off(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Run until a number of checkpoints has been written."""

    def start(after: int, **changes: Any) -> Path:
        written: list[Path] = []
        real = llm_forget.train.checkpoint.write_checkpoint

        def write(*arguments: Any) -> Path:
            written.append(real(*arguments))
            if len(written) == after:
                raise Ends
            return written[-1]

        with monkeypatch.context() as patch:
            patch.setattr("llm_forget.train.resume.write_checkpoint", write)
            with pytest.raises(Ends):
                run(values, **changes)
        return checkpoint_folder(values["output_dir"]) / "phase-1"

    return start


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept_and_a_damaged_one_is_skipped(
    values: dict[str, Any], broken_off: Callable[[int], Path], tmp_path: Path
) -> None:
    run(values, output_dir=str(tmp_path / "alone"))
    values["train"] = {**values["train"], "keep_checkpoints": 3}
    folder = broken_off(7)
    assert [path.name for path in checkpoints(folder)] == ["step-00000005", "step-00000006", "step-00000007"]
    for name in ("tensors.safetensors", "state.json", "trainer_state.json", "checkpoint.json"):
        assert not list(folder.rglob("*.pt"))
        assert (folder / "step-00000007" / name).is_file()
    with (folder / "step-00000007" / "tensors.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x55")
    (folder / "step-00000006" / "state.json").write_text("{")
    shown = run(values, resume=True)
    assert shown.count("is damaged") == 2
    assert "resuming from" in shown
    assert "step-00000005" in shown
    assert same(tmp_path / "alone", values["output_dir"])
    assert not folder.exists()


@pytest.mark.slow
def test_without_resume_checkpoints_are_not_deleted_silently(
    values: dict[str, Any], broken_off: Callable[[int], Path]
) -> None:
    folder = broken_off(2)
    with pytest.raises(UserError, match=r"--resume true to continue it, or --overwrite true to start again"):
        run(values)
    assert len(checkpoints(folder)) == 2
    shown = run(values, overwrite=True)
    assert "going on" not in shown
    assert not folder.exists()


DUAL = """
from dataclasses import dataclass, field
from typing import ClassVar
import torch
from llm_forget.methods import Needs

@dataclass
class Dual:
    needs: ClassVar = Needs()
    default_retain: ClassVar = "nll"
    bounded: ClassVar = True
    towards: ClassVar = False
    paper: ClassVar = "none"
    def __post_init__(self):
        self.dual = torch.tensor(0.1, dtype=torch.float64)
    def forget_loss(self, forget):
        self.dual = self.dual * 1.1
        return forget.mean_logps * float(self.dual)
    def state_dict(self):
        return {"dual": self.dual}
    def load_state_dict(self, state):
        self.dual = state["dual"]
"""


@pytest.mark.slow
def test_natural_steps_go_on(values: dict[str, Any], broken_off: Callable[[int], Path], tmp_path: Path) -> None:
    """Momentum and the length of the first step are saved, and the curvature is the same when it is measured again."""
    values["adapter"] = {"rank": 4, "alpha": 4, "inputs": "forget"}
    values["train"] |= {"optimizer": "natural", "learning_rate": 0.1}
    run(values, output_dir=str(tmp_path / "alone"))
    broken_off(5)
    assert "resuming from" in run(values, resume=True)
    assert same(tmp_path / "alone", values["output_dir"])


@pytest.mark.slow
@pytest.mark.parametrize("saved", [True, False])
def test_the_state_of_a_method_is_resumed(
    saved: bool, values: dict[str, Any], broken_off: Callable[[int], Path], tmp_path: Path
) -> None:
    """The weight of the method grows with every loss: with saved state the adapter is the same, without it is not."""
    source = tmp_path / "dual.py"
    source.write_text(DUAL if saved else DUAL.replace("def load_state_dict", "def unused"))
    values["method"] = {"name": str(source)}
    run(values, output_dir=str(tmp_path / "alone"))
    broken_off(5)
    run(values, resume=True)
    assert same(tmp_path / "alone", values["output_dir"]) == saved


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_a_mixture_of_experts_goes_on_and_is_exported(
    kind: str, values: dict[str, Any], broken_off: Callable[[int], Path], tmp_path: Path
) -> None:
    """Router and experts hold no state of their own: the resumed adapter is the same, and servers can load it."""
    tokenizer = tiny_tokenizer()
    tiny(kind, tokenizer, spread=2.0).save_pretrained(tmp_path / "experts")
    tokenizer.save_pretrained(tmp_path / "experts")
    values["model"] = {**values["model"], "name": str(tmp_path / "experts")}
    values["train"] = {**values["train"], "epochs": 2, "learning_rate": 1e-3}
    values["stop"] = {"forget_target": None, "utility_floor": 0.0}
    run(values, output_dir=str(tmp_path / "alone"))
    broken_off(2)
    assert "resuming from" in run(values, resume=True)
    assert same(tmp_path / "alone", values["output_dir"])
    exported = tmp_path / "exported"
    export_adapter(Path(values["output_dir"]) / "adapter", exported, base_folder=tmp_path / "experts")
    found = diagnose(tmp_path / "experts", exported, prompts=[[1, 5, 9, 2, 40, 7]])
    assert found.parity is not None
    assert found.parity.ok, found.report()


def test_resume_without_a_checkpoint_starts_from_the_beginning(values: dict[str, Any]) -> None:
    values["train"] = {**values["train"], "epochs": 1}
    assert "going on" not in run(values, resume=True)


def test_another_recipe_data_or_model_is_refused_by_name(
    values: dict[str, Any], broken_off: Callable[[int], Path], things: Path, tmp_path: Path
) -> None:
    broken_off(2)
    changed = {**values, "train": {**values["train"], "learning_rate": 0.02}, "seed": 3}
    with pytest.raises(UserError) as caught:
        run(changed, resume=True)
    assert "recipe.train.learning_rate: 0.01 in the checkpoint, 0.02 now" in str(caught.value)
    assert "recipe.seed: 0 in the checkpoint, 3 now" in str(caught.value)
    assert "overwrite" not in str(caught.value).split("Restore these")[0]

    moved = shutil.copytree(things, tmp_path / "moved")
    rows = (moved / "retain.jsonl").read_text()
    (things / "retain.jsonl").write_text(rows.replace("What of tea", "What of TEA"))
    try:
        with pytest.raises(UserError, match=r"data\.retain: \w+ in the checkpoint, \w+ now"):
            run(values, resume=True)
    finally:
        (things / "retain.jsonl").write_text(rows)

    model, weights = things / "model", (things / "model" / "model.safetensors").read_bytes()
    tiny_model(tiny_tokenizer(), hidden=32, seed=5).save_pretrained(model)
    try:
        with pytest.raises(UserError, match=r"weights\.base: \w+ in the checkpoint"):
            run(values, resume=True)
    finally:
        (model / "model.safetensors").write_bytes(weights)


@pytest.mark.slow
def test_a_full_disk_loses_neither_checkpoints_nor_the_run(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writes of steps 4 to 6 fail halfway, as on a full disk: the run continues, and existing files are unchanged."""
    run(values, output_dir=str(tmp_path / "alone"))
    real = llm_forget.train.checkpoint.save_file
    folder, calls, seen = checkpoint_folder(values["output_dir"]) / "phase-1", [], []

    def save(tensors: Any, path: Path) -> None:
        calls.append(path)
        if 4 <= len(calls) <= 6:
            path.write_bytes(b"half")
            seen.append([item.name for item in checkpoints(folder)])
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(llm_forget.train.checkpoint, "save_file", save)
    shown = run(values)
    assert seen == [["step-00000002", "step-00000003"]] * 3
    assert shown.count("no checkpoint at step") == 3
    assert "No space left on device" in shown
    assert same(tmp_path / "alone", values["output_dir"])


@pytest.mark.slow
def test_a_really_full_disk(values: dict[str, Any], tmp_path: Path) -> None:
    """Use a file system too small for three checkpoints; skipped if none can be mounted."""
    run(values, output_dir=str(tmp_path / "alone"))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        values["output_dir"] = str(disk / "one")
        values["train"] = {**values["train"], "keep_checkpoints": 9}
        shown = run(values, overwrite=True)
        assert "No space left" in shown
        assert "training continues" in shown
        assert same(tmp_path / "alone", values["output_dir"])

        with suppress(OSError):
            (disk / "filler").write_bytes(bytes(2**21))
        result = (disk / "one" / "result.json").read_bytes()
        with pytest.raises(UserError, match=r"one cannot be written: .*No space left.*--resume true"):
            run(values, overwrite=True)
        assert (disk / "one" / "result.json").read_bytes() == result, "the run before is whole"
        assert not list(disk.glob(".*")), "half a folder is left"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
