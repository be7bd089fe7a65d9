"""Test that the state of a checkpoint round trips, and that a partial checkpoint is never loaded."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_forget
from llm_forget.errors import UserError
from llm_forget.stop import Measurement, StopRule
from llm_forget.train.checkpoint import (
    check_identity,
    checkpoints,
    damaged,
    newest_whole,
    pack,
    read_checkpoint,
    rng_state,
    set_rng_state,
    unpack,
    write_checkpoint,
)
from llm_forget.train.resume import is_stateful
from llm_forget.utils.files import HOST, new_folder

keys = st.text(max_size=4) | st.integers(-9, 9) | st.sampled_from(["$tensor", "$pairs", "$tuple", "a/b"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.floats(width=32), max_size=3).map(torch.tensor)
    | st.lists(st.integers(0, 2**32 - 1), max_size=3).map(lambda row: np.array(row, dtype=np.uint32))
)
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=10,
)


def equal(one: Any, two: Any) -> bool:
    """Compare bits and types; NaN equals NaN."""
    if type(one) is not type(two):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one.nan_to_num(7.5), two.nan_to_num(7.5))
    if isinstance(one, np.ndarray):
        return bool(one.dtype == two.dtype and (one == two).all())
    if isinstance(one, dict):
        return list(one) == list(two) and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two) or (isinstance(one, float) and math.isnan(one) and math.isnan(two))


@given(states)
@settings(deadline=None, max_examples=200)
def test_any_state_round_trips_through_json(state: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(pack(state, tensors)))
    assert equal(unpack(tree, tensors), state)


def test_tensors_of_the_same_name_in_different_places_are_distinct() -> None:
    """Cover a key with a slash, and a number key next to the equal text key."""
    state = {
        "a": {"b": torch.tensor([1.0])},
        "a/b": torch.tensor([2.0]),
        "n": {1: torch.tensor([3.0]), "1": torch.tensor([4.0])},
    }
    tensors: dict[str, torch.Tensor] = {}
    assert equal(unpack(pack(state, tensors), tensors), state)


def test_unsupported_values_are_named_with_their_location() -> None:
    with pytest.raises(TypeError, match=r"/method/duals/0 is a set"):
        pack({"method": {"duals": [{1, 2}]}}, {})


def test_random_generators_continue() -> None:
    import random

    saved = rng_state()
    tensors: dict[str, torch.Tensor] = {}
    tree = pack(saved, tensors)
    drawn = [(random.random(), np.random.rand(), float(torch.rand(1))) for _ in range(2)]
    set_rng_state(unpack(json.loads(json.dumps(tree)), tensors))
    assert [(random.random(), np.random.rand(), float(torch.rand(1))) for _ in range(2)] == drawn


def write(parent: Path, step: int, **more: Any) -> Path:
    tensors: dict[str, torch.Tensor] = {}
    tree = pack({"x": torch.full((4,), float(step))}, tensors)
    settings = {"identity": {"seed": 1}, "texts": {"note.json": "{}"}, "keep": 2, **more}
    return write_checkpoint(parent, step, tree, tensors, **settings)


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "manifest", "schema"])
def test_a_damaged_checkpoint_is_detected(harm: str, tmp_path: Path) -> None:
    first, second = write(tmp_path, 9), write(tmp_path, 10)
    assert checkpoints(tmp_path) == [first, second], "by number, not by letter"
    assert damaged(second) is None
    target = second / ("checkpoint.json" if harm in ("manifest", "schema") else "tensors.safetensors")
    content = target.read_bytes()
    if harm == "gone":
        target.unlink()
    else:
        changed = {"cut": content[:-1], "changed": content[:-1] + b"\x01", "manifest": b"[]"}
        target.write_bytes(changed.get(harm, content.replace(b'"schema": 1', b'"schema": 9')))
    told: list[str] = []
    assert newest_whole(tmp_path, told.append) == first
    assert len(told) == 1
    assert str(second) in told[0]
    assert read_checkpoint(first)["x"].tolist() == [9.0] * 4


def test_identity_names_differences_and_allows_rounding(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, identity={"recipe": {"seed": 1, "list": [1, 2]}, "before": {"forget": 0.5}, "gone": 1})
    check_identity(folder, {"recipe": {"seed": 1, "list": [1, 2]}, "before": {"forget": 0.50001}, "gone": 1})
    with pytest.raises(UserError) as caught:
        check_identity(folder, {"recipe": {"seed": 2, "list": [1]}, "before": {"forget": 0.6}, "new": 3})
    for words in (
        "recipe.seed: 1 in the checkpoint, 2 now",
        "recipe.list: [1, 2]",
        "before.forget: 0.5",
        "gone: 1",
        "new: None",
    ):
        assert words in str(caught.value)


def test_a_stop_rule_resumes_without_difference() -> None:
    measured = [Measurement(0, 0.9, 0.9), Measurement(2, 0.5, 0.8), Measurement(4, 0.3, 0.5), Measurement(6, 0.2, 0.4)]
    one = StopRule(0.1, 0.7, 2)
    verdicts = [one.judge(now) for now in measured]
    first = StopRule(0.1, 0.7, 2)
    before = [first.judge(now) for now in measured[:2]]
    second = StopRule(0.1, 0.7, 2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + [second.judge(now) for now in measured[2:]] == verdicts
    assert second == one


def test_stateful_objects_are_recognised_by_two_functions() -> None:
    assert is_stateful(torch.nn.Linear(1, 1))
    assert not is_stateful(None)
    assert not is_stateful(Measurement(0, 0.1, None))


def _dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead, alive = _dead_pid(), os.getpid()
    names = {
        f".run.{HOST}-{dead}-00000000.new": False,
        f".run.{HOST}-{dead}-00000001.old": False,
        f".run.{HOST}-{alive}-00000002.new": True,
        f".run.elsewhere-{dead}-00000003.new": True,
        f".other.{HOST}-{dead}-00000004.new": True,
        ".run.notes": True,
    }
    (tmp_path / "run").mkdir()
    for name in names:
        (tmp_path / name).mkdir()
    with new_folder(tmp_path / "run") as folder:
        (folder / "file").write_text("x")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_folder_moved_by_a_dead_process_is_restored(tmp_path: Path) -> None:
    """If the process is killed between the two renames, the previous run is neither lost nor hidden."""
    script = (
        "import os, sys, pathlib\nfrom llm_forget.utils.files import new_folder\nrename = pathlib.Path.rename\n"
        "def once(self, to):\n    rename(self, to)\n    os.kill(os.getpid(), 9)\n"
        "pathlib.Path.rename = once\nwith new_folder(pathlib.Path(sys.argv[1])) as f:\n    (f / 'x').write_text('new')\n"
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "x").write_text("old")
    env = {**os.environ, "PYTHONPATH": str(Path(llm_forget.__path__[0]).parent)}
    assert subprocess.run([sys.executable, "-c", script, str(run)], env=env, check=False).returncode == -9
    assert not run.exists()
    from llm_forget.train.run_folder import check_output

    (next(tmp_path.glob(".run.*.old")) / "result.json").write_text("{}")
    with pytest.raises(UserError, match="already contains a run"):
        check_output(str(run), overwrite=False)
    assert (run / "x").read_text() == "old"
