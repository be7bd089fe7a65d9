"""Test `llm-forget subtract` and `compose` on files, and all error messages of the adapter commands."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_examples import BASE, SHAPES, change, largest, random_adapter, save_tiny_llama, trained_adapter
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner
from unlearned_examples import World, make_world

from llm_forget.adapters.arithmetic import combine, delta
from llm_forget.adapters.lora import load_adapter, read_base_record, save_adapter
from llm_forget.cli.entry import run_entry
from llm_forget.cli.main import app
from llm_forget.utils.digests import weights_digest

runner = CliRunner()


def run(*arguments: object) -> str:
    """Run a command that must succeed, and return its output."""
    done = runner.invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.exception
    return done.output


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail, and return its error: one message on standard error, exit status 2, no traceback."""
    argv = [str(argument) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        run_entry(lambda given: app(given, standalone_mode=True), argv)
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert shown.err.startswith("error: ")
    assert shown.err.count("error:") == 1
    assert "Traceback" not in shown.err
    return " ".join(shown.err.split())


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    good = save_adapter(random_adapter(1, ranks=(3, 5), rslora=True), tmp_path / "good")
    return good, save_adapter(random_adapter(2, ranks=(12,)), tmp_path / "bad")


def assert_sum(folder: Path, parts: list[tuple[Path, float]]) -> None:
    """Check that the written ΔW is the weighted sum computed by hand, to 1e-5 of the largest entry."""
    result, read = load_adapter(folder), [(load_adapter(part), weight) for part, weight in parts]
    for module in SHAPES:
        wanted = sum(weight * change(part, module) for part, weight in read)
        assert largest(delta(result, module).double() - wanted) <= 1e-5 * largest(wanted)
    assert result.base == BASE


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        (["--minus", "bad"], (0.0, -1.0)),
        (["--adapter", "good", "--strength", "0.5"], (0.5, 0.0)),
        (["--adapter", "good", "--minus", "bad"], (1.0, -1.0)),
        (["--adapter", "good", "--adapter", "bad"], (1.0, 1.0)),
        (["--adapter", "good", "--minus", "bad", "--strength", "-2.5"], (-2.5, 2.5)),
        (["--adapter", "good", "--strength", "-1"], (-1.0, 0.0)),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_subtract_writes_strength_times_the_difference_of_sums(two, tmp_path, monkeypatch, arguments, weights) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("subtract", *arguments, "--to", "out")
    assert "residual 0.00e+00" in shown
    assert_sum(tmp_path / "out", list(zip(two, weights, strict=True)))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


def test_subtract_truncates_to_a_rank_and_reports_the_loss(two, tmp_path) -> None:
    good, bad = two
    exact = run("subtract", "--adapter", good, "--minus", bad, "--to", tmp_path / "exact")
    assert "rank 17, residual 0.00e+00" in exact
    assert "--max-lora-rank 32, or truncate with --rank 16" in exact
    shown = run("subtract", "--adapter", good, "--minus", bad, "--rank", 8, "--to", tmp_path / "cut")
    assert "rank 8, residual " in shown
    assert "note" not in shown
    wanted = combine([load_adapter(good), load_adapter(bad)], [1, -1])
    lost = sum(float((change(load_adapter(tmp_path / "cut"), m) - change(wanted, m)).norm()) ** 2 for m in SHAPES)
    whole = sum(float(change(wanted, m).norm()) ** 2 for m in SHAPES)
    printed = float(shown.split("residual ")[1].split(",")[0])
    assert printed == pytest.approx((lost / whole) ** 0.5, rel=1e-2)
    assert f"lost {printed:.2e} of the change" in (tmp_path / "cut" / "README.md").read_text()


def test_a_given_base_is_recorded_and_a_missing_one_is_reported(tmp_path) -> None:
    base = save_tiny_llama(tmp_path / "base")
    raw = trained_adapter(base, tmp_path / "raw")
    assert "no digest of the base is recorded" in run("subtract", "--minus", raw, "--to", tmp_path / "a")
    assert read_base_record(tmp_path / "a").digest is None
    assert str(tmp_path) not in (tmp_path / "a" / "adapter_config.json").read_text()
    assert "none recorded" in (tmp_path / "a" / "README.md").read_text()
    assert "note" not in run("subtract", "--minus", raw, "--base", base, "--to", tmp_path / "b")
    assert read_base_record(tmp_path / "b").digest == weights_digest(base)
    assert "base: same" in run("doctor", "--base", base, "--adapter", tmp_path / "b")


def test_adapters_that_cannot_be_combined_are_refused(two, tmp_path, capsys) -> None:
    good, bad = two
    out = ["--to", tmp_path / "out"]
    assert "give folders with --adapter (to add) or --minus" in refusal(capsys, "subtract", *out)
    assert "cancel out, so nothing is left" in refusal(capsys, "subtract", "--adapter", good, "--minus", good, *out)
    assert "--strength 0 changes nothing" in refusal(capsys, "subtract", "--minus", bad, "--strength", 0, *out)
    assert "must be a finite number" in refusal(capsys, "subtract", "--minus", bad, "--strength", "nan", *out)
    assert "rank 0 given; at least 1" in refusal(capsys, "subtract", "--minus", bad, "--rank", 0, *out)
    given = ["--minus", bad, "--strength", 1, "--search"]
    assert "leave one of them out" in refusal(capsys, "subtract", *given, *out)
    wanted = "--search also needs --base, --forget, --retain or --validation"
    assert wanted in refusal(capsys, "subtract", "--minus", bad, "--search", *out)
    assert "--forget given without --search" in refusal(capsys, "subtract", "--minus", bad, "--forget", "x", *out)
    assert "--groups given without --search" in refusal(capsys, "subtract", "--minus", bad, "--groups", 2, *out)
    other = save_adapter(random_adapter(3), tmp_path / "other")
    config = other / "adapter_config.json"
    config.write_text(config.read_text().replace("org/tiny", "org/large"))
    save_file(load_file(other / "adapter_model.safetensors"), other / "adapter_model.safetensors")  # drops the digest
    message = refusal(capsys, "subtract", "--adapter", good, "--minus", other, *out)
    assert "name different bases" in message
    assert "--assume-same-base" in message
    assert not (tmp_path / "out").exists()
    run("subtract", "--adapter", good, "--minus", other, "--assume-same-base", *out)
    assert "already exists" in refusal(capsys, "subtract", "--minus", bad, *out)
    run("subtract", "--minus", bad, "--overwrite", *out)
    assert_sum(tmp_path / "out", [(bad, -1.0)])


def test_compose_prints_the_overlap_and_writes_the_sum_in_any_order(two, tmp_path, capsys) -> None:
    good, bad = two
    shown = run("compose", "--adapter", good, "--adapter", bad, "--to", tmp_path / "one")
    run("compose", "--adapter", bad, "--adapter", good, "--to", tmp_path / "other")
    assert f"{good} and {bad}: cosine " in shown
    assert "shared inputs 0." in shown
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert_sum(tmp_path / "one", [(good, 1.0), (bad, 1.0)])
    out = ["--to", tmp_path / "x"]
    assert "composing takes two or more" in refusal(capsys, "compose", "--adapter", good, *out)
    assert "given twice" in refusal(capsys, "compose", "--adapter", good, "--adapter", good, *out)
    wanted = "give --base and --forget, and optionally --retain"
    both = ["--adapter", good, "--adapter", bad]
    assert wanted in refusal(capsys, "compose", *both, "--forget", "x.jsonl", *out)
    assert wanted in refusal(capsys, "compose", *both, "--retain", "x.jsonl", *out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.slow
def test_compose_measures_adapters_alone_and_together(world, tmp_path) -> None:
    first, second = world.adapter("first"), world.adapter("second")
    data = ["--forget", world.data("first"), "--forget", world.data("second"), "--retain", world.data("retain")]
    held = ["--base", world.base, "--dtype", "float32"]
    shown = run("compose", "--adapter", first, "--adapter", second, *held, *data, "--to", tmp_path / "both")
    lines = {line.split(":")[0]: line for line in shown.splitlines()}
    assert {"base", f"{first} alone", f"{second} alone", "together"} <= lines.keys()
    base, alone, together = (
        [float(number) for number in lines[name].split("forget ")[1].replace(" · retain", " /").split(" / ")]
        for name in ("base", f"{first} alone", "together")
    )
    assert base[0] > 0.9 > 0.3 > alone[0]
    assert max(together[:2]) < 0.9
    assert "interference: forget probability together minus its adapter alone, at most " in shown
    lost, added = (
        float(n)
        for n in re.findall(r"retain probability lost together (\S+), summed over the adapters (\S+)", shown)[0]
    )
    assert lost == pytest.approx(base[2] - together[2], abs=2e-3)
    assert added != lost
    card = (tmp_path / "both" / "README.md").read_text()
    assert "| forget probability, set 2 |" in card
    assert "Method: sum of 2 adapters." in card
    assert world.data("first") not in card


def test_subtract_searches_the_strength(world, tmp_path) -> None:
    data = ["--forget", world.data("first"), "--retain", world.data("retain"), "--holdout", world.data("holdout")]
    search = ["--search", "--base", world.base, "--dtype", "float32", "--maximum", 2, "--tries", 4, "--floor", 0.5]
    to = tmp_path / "found"
    shown = run("subtract", "--adapter", world.adapter("first"), *search, *data, "--target", 0.3, "--to", to)
    strength = float(shown.split("\nstrength: ")[-1].split("strength: ")[-1].split()[0])
    assert "forget target: 0.3000, reached" in shown
    whole, found = load_adapter(world.adapter("first")), load_adapter(to)
    for module in whole.modules:
        torch.testing.assert_close(delta(found, module), strength * delta(whole, module), atol=1e-4, rtol=1e-3)
    assert "| forget target | 0.3000, reached |" in (to / "README.md").read_text()
    grouped = run(
        "subtract", "--adapter", world.adapter("first"), *search, *data, "--groups", 2, "--to", tmp_path / "groups"
    )
    assert "groups of layers: 0 | 1" in grouped


Damage = Callable[[Path], None]


def configured(**changes: Any) -> Damage:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def with_tensor(name: str) -> Damage:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file({**load_file(path), name: torch.ones(4, 4)}, path)

    return edit


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, folder / "adapter_model.bin")


REFUSED: dict[str, tuple[Damage, str]] = {
    "DoRA": (configured(use_dora=True), "DoRA adds a magnitude .* train again without it"),
    "modules to save": (
        configured(modules_to_save=["lm_head"]),
        "whole modules were trained .* train again without it",
    ),
    "embedding": (
        with_tensor("base_model.model.model.embed_tokens.lora_embedding_A"),
        "linear layers as target_modules",
    ),
    "whole embedding": (with_tensor("base_model.model.model.embed_tokens.weight"), "leave embeddings and head out"),
    "PiSSA": (configured(init_lora_weights="pissa"), "train again with init_lora_weights=True"),
    "cut short": (cut_short, "damaged.* Copy or save the adapter again"),
    "pickle": (pickled, r"a pickle, .* save_pretrained\(folder\)"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("command", ["subtract", "compose", "export", "merge"])
@pytest.mark.parametrize(("damage", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_adapters_that_are_not_plain_lora_are_refused_with_a_remedy(
    damage: Damage, message: str, command: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_adapter(base, tmp_path / "raw")
    sound = shutil.copytree(folder, tmp_path / "sound")
    damage(folder)
    given: dict[str, list[object]] = {
        "subtract": ["--adapter", sound, "--minus", folder],
        "compose": ["--adapter", sound, "--adapter", folder],
    }
    arguments = given.get(command, ["--base", base, "--adapter", folder])
    assert re.search(message, refusal(capsys, command, *arguments, "--to", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["subtract", "export", "merge"])
def test_another_base_is_refused(command: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", "--base", base, "--adapter", trained_adapter(base, tmp_path / "raw"), "--to", tmp_path / "mine")
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] + 1}, other / "model.safetensors")
    arguments = ["--base", other, "--adapter", tmp_path / "mine", "--to", tmp_path / "out"]
    message = refusal(capsys, command, *arguments)
    assert "another model" in message
    assert "ive the base it was trained on" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "patterns", [{"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 3}}], ids=lambda p: next(iter(p))
)
def test_patterns_are_converted(patterns: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """The doctor reports problems for the raw adapter and none for the exported one."""
    raw = trained_adapter(base, tmp_path / "raw", **patterns)
    assert runner.invoke(app, ["doctor", "--base", str(base), "--adapter", str(raw)]).exit_code == 1
    assert "residual" not in run("export", "--base", base, "--adapter", raw, "--to", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    run("doctor", "--base", base, "--adapter", tmp_path / "out")
    for module in load_adapter(raw).modules:
        one, other = delta(load_adapter(raw), module), delta(load_adapter(tmp_path / "out"), module)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("command", ["cut short", "pickle"])
def test_the_doctor_refuses_unreadable_adapters(
    command: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained_adapter(base, tmp_path / "raw")
    REFUSED[command][0](folder)
    message = refusal(capsys, "doctor", "--base", base, "--adapter", folder)
    assert ("a pickle" if command == "pickle" else "damaged") in message
