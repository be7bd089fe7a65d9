"""Deploying keeps an adapter that is served as it should be, and rolls back every other one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import command
from fake_vllm import FakeVllm, serving_fake
from memorised import SECRET

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.lora import load_adapter, save_adapter
from llm_forget.config import UnlearnRecipe
from llm_forget.sharing import deploy as deploying
from llm_forget.sharing.deploy import deploy
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(memorised_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("deploy") / "run"
    values = {
        "model": {"name": str(memorised_folder / "model"), "dtype": "float32"},
        "data": {name: {"path": str(memorised_folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo"},
        "adapter": {"rank": 4, "alpha": 8},
        "train": {"epochs": 4, "batch_size": 4, "learning_rate": 1e-2},
        "stop": {"forget_target": 0.05, "utility_floor": 0.0},
        "output_dir": str(output),
    }
    unlearn(build(UnlearnRecipe, values, "run"))
    return output


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploying, "_POOL", 12)


def test_it_is_loaded_asked_and_kept_and_no_text_of_the_data_is_sent(run: Path, memorised_folder: Path) -> None:
    fake = FakeVllm(memorised_folder / "model")
    with serving_fake(fake) as address:
        done = command("deploy", run, "--server", address, "--name", "forgotten", "--json")
        assert done.status == 0, done.err
        assert fake.adapters == {"forgotten": str(run / "adapter")}
        lines = json.loads(done.out)["lines"]
        assert "5 of 5 control questions are answered alike" in lines[-1]
        again = deploy(run, address, "forgotten")
    assert again.ok
    assert "served from" in again.lines[0]
    assert not any(SECRET in one for one in fake.heard)


@pytest.mark.parametrize("earlier", [True, False])
def test_what_was_served_before_is_served_again(
    run: Path, memorised_folder: Path, tmp_path: Path, earlier: bool
) -> None:
    """The server ignores adapters, so the answers are the base's; and it is one from before ``load_inplace``."""
    before = {"forgotten": str(tmp_path / "earlier")} if earlier else {}
    fake = FakeVllm(memorised_folder / "model", dict(before), ignores=True, inplace=False)
    with serving_fake(fake) as address:
        done = deploy(run, address, "forgotten")
    assert not done.ok
    assert fake.adapters == before
    assert done.lines[-1].startswith("rolled back")
    assert "of 5 control questions" in done.lines[-2]


def test_another_adapter_under_the_name_is_noticed(run: Path, memorised_folder: Path, tmp_path: Path) -> None:
    wrong = save_adapter(scale(load_adapter(run / "adapter"), -1), tmp_path / "wrong")

    class Swaps(FakeVllm):
        def answer(self, path: str, body: dict[str, object]) -> tuple[int, object]:
            return super().answer(path, {**body, "lora_path": str(wrong)} if "lora_path" in body else body)

    fake = Swaps(memorised_folder / "model")
    with serving_fake(fake) as address:
        done = deploy(run, address, "forgotten")
    assert not done.ok
    assert fake.adapters == {}


def test_without_a_server_nothing_is_done(run: Path) -> None:
    done = command("deploy", run, "--server", "http://127.0.0.1:9", "--name", "x")
    assert done.status == 2
    assert "gave no answer" in done.err
