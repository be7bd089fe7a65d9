"""Real trials on a tiny model: run folders, the front, pruning, a worker that goes on, and submitit's local executor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT

pytest.importorskip("optuna", reason="pip install 'llm-forget[search]'")
from safetensors.torch import load_file

from llm_forget.config import AdapterConfig
from llm_forget.errors import UserError
from llm_forget.forgetting.found import look
from llm_forget.forgetting.order import Order
from llm_forget.forgetting.work import work_for
from llm_forget.train.build import build_method, build_wrappers, planned_objective
from llm_forget.train.shared import share
from llm_forget.train.unlearn import finished
from llm_forget.trials.search import Search, read_search
from llm_forget.trials.slots import Result, Slots
from llm_forget.trials.space import Space, reads_names, usable_methods
from llm_forget.trials.worker import work
from llm_forget.trials.yardstick import Yardstick


@pytest.fixture
def order(memorised_folder: Path, tmp_path: Path) -> Order:
    folder = memorised_folder
    rows = {name: str(folder / f"{name}.jsonl") for name in ("forget", "retain")}
    return Order(str(folder / "model"), **rows, to=str(tmp_path / "search"), changes={"train": {"epochs": 4}})


def searching(order: Order, *options: str) -> list[str]:
    words = [sys.executable, "-m", "llm_forget.cli", "search", "--to", str(order.to), *options]
    return [*words, "--model", order.model, "--forget", order.forget, "--retain", str(order.retain)]


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_and_ends_in_a_front(order: Order, tmp_path: Path) -> None:
    """SIGKILL to a worker on its first trial; the same command under submitit's local executor finishes every trial once."""
    pytest.importorskip("submitit", reason="pip install 'llm-forget[slurm]'")
    options = ["--trials", "2", "--methods", "npo,grad_diff", "--train.epochs", "4", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(searching(order, *options), env=environment, stdout=subprocess.DEVNULL)
    log = Path(str(order.to)) / "trials" / "0000.log"
    until = time.monotonic() + 120
    while not log.is_file() and time.monotonic() < until:
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = searching(order, *options, "--engine", "slurm-local")
    done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["complete"] is True
    assert [one["trial"] for one in found["trials"]] == sorted({one["trial"] for one in found["trials"]})
    assert len(found["trials"]) == 2
    assert found["trials"][0]["params"]["method"] == "npo", "the first trial is the default"
    assert set(found["front"]) <= {one["trial"] for one in found["trials"]}
    for one in found["trials"]:
        kept = (Path(one["run"]) / "adapter" / "adapter_model.safetensors").is_file()
        assert kept is ("pruned_at" not in one), "a run that is ended early leaves no adapter"
        assert one["distance"] >= 0
        assert 0 <= one["harm"] <= 1
    assert 0 <= found["hypervolume"] <= 1


def test_the_first_trial_is_the_default_and_every_drawing_makes_a_recipe(order: Order) -> None:
    start = work_for(look(order)).recipe
    methods = usable_methods(start, base=False)
    assert methods[0] == start.method["name"] == "npo"
    assert "base_teacher" not in methods
    assert "grad_ascent" not in methods, "its loss has no lower bound"
    space = Space(start, methods)
    first = space.recipe(space.first, start.output_dir)
    for section in ("method", "train", "stop", "data", "wrappers"):
        assert getattr(first, section) == getattr(start, section)
    assert (first.retain, first.adapter) == (start.retain, start.adapter)
    for method in methods:
        drawn = {**space.first, "method": method, "blocks": 0.5, "inputs": "forget", "steps": 0.5, "wrapper": "sam"}
        drawn["tolerance"] = 0.5
        recipe = space.recipe(drawn, "runs/x")
        assert recipe.method["name"] == method
        assert recipe.stop.tolerance == 0.5
        assert recipe.train.epochs == max(1, round(start.train.epochs / 4)), "the default takes twice the usual steps"
    assert start.train.optimizer == "natural"
    assert space.recipe({**space.first, "wrapper": "gru"}, start.output_dir) == first, "nothing for it to read"
    assert space.recipe({**space.first, "wrapper": "sam"}, start.output_dir) != first
    for method in methods:
        for wrapper in space.wrappers:
            recipe = space.recipe({**space.first, "method": method, "wrapper": wrapper, "inputs": "all"}, "runs/x")
            made = build_method(recipe)
            assert len(build_wrappers(recipe, made, planned_objective(recipe).retain is not None)) <= 1, (
                "no trial is refused"
            )
            assert (recipe.wrappers == []) is (wrapper == "none" or made.towards)
    with pytest.raises(UserError, match="nonsense"):
        space.recipe({**space.first, "wrapper": "nonsense"}, "runs/x")
    with pytest.raises(UserError, match="needs the model before it learned the rows"):
        usable_methods(start, base=False, wanted=["base_teacher"])


def test_rows_without_names_leave_out_the_methods_that_need_them(order: Order) -> None:
    start = work_for(look(order)).recipe
    every, nameless = usable_methods(start, base=True), usable_methods(start, base=True, names=False)
    assert set(every) - set(nameless) == {"name_swap", "permu"}
    assert reads_names(every)
    assert not reads_names(nameless)
    with pytest.raises(UserError, match="permu needs whole rows about names"):
        usable_methods(start, base=True, names=False, wanted=["permu"])


def test_a_folder_keeps_its_search(order: Order) -> None:
    search = Search(order, 5, ("npo",))
    search.folder.mkdir(parents=True)
    search.write()
    found = read_search(search.folder)
    assert (found.trials, found.methods, found.order.changes) == (5, ("npo",), {"train": {"epochs": 4}})
    Search(order, 9, ("npo",)).write()
    assert read_search(search.folder).trials == 9
    with pytest.raises(UserError, match="holds another search"):
        Search(order, 9, ("npo", "simnpo")).write()
    with pytest.raises(UserError, match="give --model and --forget to begin"):
        read_search(search.folder.parent)


class _Rungs:
    """Trials whose distance and harm are their parameter; each asks at one rung."""

    def __init__(self) -> None:
        self.went_on: list[bool] = []

    def draw(self, trial: Any) -> object:
        return trial.suggest_float("x", 0, 1)

    def key(self, params: Any) -> object:
        return dict(params)

    def run(self, params: Any, place: Path, ask: Any) -> Result:
        x = params["x"]
        self.went_on.append(ask(0, x, x))
        return Result(x, x, {}, {} if self.went_on[-1] else {"pruned_at": 3})


def test_a_trial_that_a_third_of_the_others_beat_at_a_rung_is_ended(tmp_path: Path) -> None:
    """After three trials: 0.6 and 0.7 are beaten by all, 0.9 by all six, 0.35 by two of seven, 0.65 by six of eight."""
    slots, runner = Slots(tmp_path, budget=9, worker=0), _Rungs()
    slots.enqueue([{"x": x} for x in (0.3, 0.4, 0.5, 0.6, 0.7, 0.2, 0.9, 0.35, 0.65)])
    assert work(slots, runner)
    assert runner.went_on == [True] * 3 + [False, False, True, False, True, False]
    assert [one.user_attrs.get("pruned_at") for one in slots.finished().values()] == [None] * 3 + [
        3,
        3,
        None,
        3,
        None,
        3,
    ]


class _Quick(_Rungs):
    """Trials below ½ end before the rung."""

    def run(self, params: Any, place: Path, ask: Any) -> Result:
        return Result(params["x"], params["x"]) if params["x"] < 0.5 else super().run(params, place, ask)


def test_a_trial_that_ended_before_a_rung_counts_there_as_it_was(tmp_path: Path) -> None:
    slots, runner = Slots(tmp_path, budget=5, worker=0), _Quick()
    slots.enqueue([{"x": x} for x in (0.3, 0.6, 0.1, 0.2, 0.7)])
    assert work(slots, runner)
    assert runner.went_on == [True, False]  # 0.6 has one other, 0.7 four that are better


def test_the_yardstick_by_hand() -> None:
    """Gaps of 1 and −3: mean 2, one-sided ½. Retain falls from 0.8 to 0.6, a quarter, neighbours rise: harm is a quarter.

    With entropies that are off by 0 and 4: 1 and √(9 + 16) = 5, mean 3.
    """
    stick = Yardstick((-3.0, -1.0), None, "oracle", False, {}, {"retain": 0.8, "neighbours": 0.5})
    assert stick.distance([-2.0, -4.0], [1.0, 5.0]) == 2.0
    assert replace(stick, entropies=(1.0, 1.0)).distance([-2.0, -4.0], [1.0, 5.0]) == 3.0
    assert Yardstick((-3.0, -1.0), None, "usual", True, {}).distance([-2.0, -4.0], [1.0, 5.0]) == 0.5
    assert stick.distance([float("-inf"), -1.0], [0.0, 0.0]) == 25.0
    assert stick.harm({"retain": 0.6, "neighbours": 0.6}) == pytest.approx(0.25)
    assert stick.harm({"retain": float("nan"), "neighbours": 0.5}) == 1.0


def test_a_hopeless_trial_by_hand() -> None:
    """3.3 nats before unlearning. Worse with harm, half of a set lost, no way gone: hopeless.

    So is a pace since the rung before that ends above 1.65: 2.9 − 4 · 0.3 = 1.7 and 1.95 − 0.05 = 1.9 do, but not
    2.85 − 4 · 0.35 = 1.45.
    """
    stick = Yardstick((-3.0,), None, "oracle", False, {}, start=3.3)
    first, second, third = 1 / 6, 1 / 3, 2 / 3
    assert stick.hopeless([(first, 3.4)], 0.06)
    assert stick.hopeless([(first, 1.0)], 0.5)
    assert stick.hopeless([(first, 3.29)], 0.0)
    assert not stick.hopeless([(first, 3.2)], 0.04)
    assert stick.hopeless([(first, 3.2), (second, 2.9)], 0.0)
    assert not stick.hopeless([(first, 3.2), (second, 2.85)], 0.4)
    assert stick.hopeless([(second, 2.0), (third, 1.95)], 0.0)
    assert not stick.hopeless([(second, 1.6), (third, 1.6)], 0.0)


@pytest.mark.slow
def test_what_trials_share_changes_no_run(order: Order, tmp_path: Path) -> None:
    """A run that takes the moments and the measurement before its first step from others ends in the same adapter."""
    start = work_for(look(order)).recipe
    adapter = AdapterConfig(rank=4, inputs="forget")
    train = replace(start.train, optimizer="natural", epochs=2, learning_rate=0.1)
    recipe = replace(start, adapter=adapter, train=train, output_dir=str(tmp_path / "alone"))
    file = tmp_path / "aim.safetensors"
    shared = share(recipe, aim=file)
    assert shared.aim == file
    written = file.stat().st_mtime_ns
    assert share(recipe, aim=file).aim == file
    assert file.stat().st_mtime_ns == written, "the same rows and weights are measured once"
    finished(recipe, shared=replace(shared, aim=None, start=None))
    finished(replace(recipe, output_dir=str(tmp_path / "shared")), shared=shared)
    alone, together = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("alone", "shared"))
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
