"""Test the commands of the command line; the functions they call have their own tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from llm_forget.cli.catalogue import method_entries
from llm_forget.cli.console import run_command
from llm_forget.cli.main import app
from llm_forget.config import AdapterConfig
from llm_forget.errors import UserError
from llm_forget.model.blocks import add_adapter
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.plugins import names_in

runner = CliRunner()


def test_methods_lists_every_file() -> None:
    shown = runner.invoke(app, ["methods"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for name in names_in("llm_forget.methods"):
        assert name in shown.output


def test_methods_as_json_for_scripts() -> None:
    found = json.loads(runner.invoke(app, ["methods", "--json"]).stdout)
    assert {entry["name"] for entry in found["methods"]} == set(names_in("llm_forget.methods"))
    assert {entry["name"] for entry in found["wrappers"]} == set(names_in("llm_forget.wrappers"))


def test_every_command_shows_an_example_or_every_field() -> None:
    commands: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
    assert len(commands) > 10
    for name, one in commands.items():
        shown = runner.invoke(app, [name, "--help"], env={"COLUMNS": "100"})
        assert shown.exit_code == 0, name
        assert hasattr(one, "commands") or f"llm-forget {name}" in shown.output or "--config FILE" in shown.output, name


def test_narrow_terminals_show_whole_method_names() -> None:
    shown = runner.invoke(app, ["methods"], env={"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}).output
    for entry in method_entries():
        assert entry.name in shown
        assert entry.recipe in shown
    assert max(map(len, shown.splitlines()[:12])) <= 80
    assert "…" not in shown


def command(*arguments: str) -> tuple[int, str]:
    """Return exit status and standard error of the installed command, run in a subprocess."""
    script = (
        f"import sys; sys.argv = ['llm-forget', *{list(arguments)!r}]; from llm_forget.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_user_errors_are_one_line_with_status_2_and_debug_shows_the_traceback() -> None:
    status, told = command("report", "no/such/run")
    assert status == 2
    assert told.startswith("error: no/such/run does not exist; give a run folder")
    assert "Traceback" not in told
    status, told = command("report", "no/such/run", "--debug")
    assert status == 2
    assert "Traceback" in told


def test_internal_errors_have_no_traceback_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A message that could quote a data row is omitted; --debug shows the full error."""
    monkeypatch.setenv("LLM_FORGET_DEBUG", "0")

    def broken(argv: list[str], **_: object) -> None:
        raise KeyError("Vexatorium-7714")

    with pytest.raises(SystemExit) as ended:
        run_command(broken, [])
    assert ended.value.code == 3
    told = capsys.readouterr().err
    assert "error: KeyError in test_main.py:" in told
    assert "Vexatorium" not in told
    assert "Traceback" not in told
    with pytest.raises(SystemExit) as ended:
        run_command(broken, ["--debug"])
    assert ended.value.code == 3
    assert "KeyError: 'Vexatorium-7714'" in capsys.readouterr().err


def test_recipes_are_listed_and_copied(tmp_path: Path) -> None:
    listed = runner.invoke(app, ["recipes", "list"]).output
    assert "recipes/demo/npo.yaml" in listed
    assert "recipes/notebooks/compare_runs.ipynb\tCompare runs" in listed
    copied = runner.invoke(app, ["recipes", "copy", "recipes/demo/npo.yaml", str(tmp_path)])
    assert copied.exit_code == 0
    assert "name: npo" in (tmp_path / "npo.yaml").read_text()


def test_copy_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "npo.yaml").write_text("mine")
    result = runner.invoke(app, ["recipes", "copy", "recipes/demo/npo.yaml", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert (tmp_path / "npo.yaml").read_text() == "mine"


@pytest.mark.parametrize("command", ["unlearn", "finetune", "evaluate"])
def test_launch_commands_pass_on_their_options(command: str) -> None:
    result = runner.invoke(app, [command, "--config", "no-such-recipe.yaml"])
    assert isinstance(result.exception, UserError)
    assert "no-such-recipe.yaml" in str(result.exception)


def test_export_merge_and_doctor_work_on_a_trained_adapter(tmp_path: Path) -> None:
    """A PEFT adapter on a tiny model is exported, passes the doctor, and merges to the same logits."""
    tokenizer = tiny_tokenizer()
    base = tmp_path / "base"
    tiny_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    trained = add_adapter(tiny_model(tokenizer), AdapterConfig(rank=4, alpha=8))
    torch.manual_seed(1)
    for name, value in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    trained.save_pretrained(tmp_path / "raw")
    options = ["--base", str(base)]
    exported = runner.invoke(
        app, ["export", *options, "--adapter", str(tmp_path / "raw"), "--to", str(tmp_path / "out")]
    )
    assert exported.exit_code == 0, exported.exception
    examined = runner.invoke(app, ["doctor", *options, "--adapter", str(tmp_path / "out")])
    assert (examined.exit_code, "base: same" in examined.output) == (0, True)
    merged = runner.invoke(
        app, ["merge", *options, "--adapter", str(tmp_path / "out"), "--to", str(tmp_path / "merged")]
    )
    assert merged.exit_code == 0, merged.exception
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        wanted = trained.eval()(tokens).logits
        found = LlamaForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
        plain = LlamaForCausalLM.from_pretrained(base)(tokens).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (plain - wanted).abs().max() > 0.05


def test_doctor_exits_with_1_for_another_base(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    for seed in (0, 1):
        tiny_model(tokenizer, seed=seed).save_pretrained(tmp_path / f"base{seed}")
    add_adapter(tiny_model(tokenizer), AdapterConfig(rank=4, alpha=8)).save_pretrained(tmp_path / "raw")
    raw = ["--adapter", str(tmp_path / "raw"), "--to", str(tmp_path / "out")]
    exported = runner.invoke(app, ["export", "--base", str(tmp_path / "base0"), *raw, "--json"])
    assert json.loads(exported.stdout)["folder"] == str(tmp_path / "out")
    adapter = ["--adapter", str(tmp_path / "out")]
    assert runner.invoke(app, ["doctor", "--base", str(tmp_path / "base1"), *adapter]).exit_code == 1
