"""Push and pull against a hub on a loopback port: what is sent, what is never sent, and what comes back."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_hub import Hub, fake_hub
from memorised import SECRET
from rich.console import Console
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import UserError
from llm_forget.runs import load_run
from llm_forget.sharing.hub import pull, push
from llm_forget.sharing.package import package
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build
from llm_forget.utils.files import write_record


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with fake_hub() as found:
        yield found


@pytest.fixture(scope="module")
def trained(memorised_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("shared") / "run"
    values = {
        "model": {"name": str(memorised_folder / "model"), "dtype": "float32"},
        "data": {name: {"path": str(memorised_folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "grad_diff"},
        "adapter": {"rank": 2, "alpha": 2},
        "train": {"epochs": 1},
        "output_dir": str(run),
    }
    unlearn(build(UnlearnRecipe, values, "test"), Console(file=io.StringIO()))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_goes_to_the_hub_and_comes_back_the_same(run: Path, hub: Hub, tmp_path: Path) -> None:
    """Every file is sent by name; no text of the data, no path of this machine, and no Parquet file are among them."""
    (run / "eval").mkdir()
    (run / "eval" / "custom.parquet").write_bytes(SECRET.encode())
    push(run, "owner/name", base="org/base", report=False, endpoint=hub.address)
    assert set(hub.files) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        *(f"evidence/{name}" for name in ("env.json", "metrics.jsonl", "recipe.yaml", "result.json")),
    }
    assert hub.created.get("visibility") == "private" or hub.created.get("private") is True
    sent = b"\n".join(content for content in hub.files.values())
    assert SECRET.encode() not in sent
    assert str(tmp_path).encode() not in sent
    card = hub.files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "org/base"
    assert "## Measured" in card
    assert "## Limits" in card
    back = pull("owner/name", tmp_path / "back", endpoint=hub.address)
    assert load_run(back).result == load_run(run).result
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (back / "adapter" / name).read_bytes() == (run / "adapter" / name).read_bytes()
    assert not (back / "evidence").exists()


def test_an_adapter_that_is_not_the_measured_one_is_not_taken(run: Path, hub: Hub, tmp_path: Path) -> None:
    push(run, "owner/name", report=False, endpoint=hub.address)
    config = json.loads(hub.files["adapter_config.json"])
    hub.files["adapter_config.json"] = json.dumps({**config, "inference_mode": False}).encode()
    with pytest.raises(UserError, match="not the one that was measured"):
        pull("owner/name", tmp_path / "back", endpoint=hub.address)
    assert not (tmp_path / "back").exists()


def test_what_cannot_be_shared_is_refused_with_the_reason(run: Path, hub: Hub, tmp_path: Path) -> None:
    hub.refuses = 403
    with pytest.raises(UserError, match="log in with a token"):
        push(run, "owner/name", report=False, endpoint=hub.address)
    with pytest.raises(UserError, match="no name of a repository"):
        push(run, "a b/c d", report=False, endpoint=hub.address)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "steps": 99}))
    with pytest.raises(UserError, match=r"result.json .*edited"):
        package(run, report=False)
    (run / "result.json").write_text(json.dumps(result))
    (run / "audit").mkdir()
    write_record(run / "audit" / "audit.json", {"cells": [{"generated": SECRET}]})
    with pytest.raises(UserError, match="holds text of the data"):
        package(run, report=False)


def test_a_dry_run_lists_every_file_and_sends_nothing(run: Path) -> None:
    pytest.importorskip("plotly", reason="pip install 'llm-forget[report]'")
    shown = CliRunner().invoke(app, ["push", str(run), "owner/name", "--dry-run", "--json"])
    assert shown.exit_code == 0, shown.output
    files = json.loads(shown.stdout)["files"]
    assert set(files) == set(package(run))
    assert {"report.html", "README.md", "adapter_model.safetensors"} <= set(files)
    assert all(size > 0 for size in files.values())
