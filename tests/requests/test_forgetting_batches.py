"""Batches on a tiny model: ways of forgetting, the test of earlier requests, interruption, and the answer with a certificate."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path

import pytest
import yaml
from commands import command
from rich.console import Console
from unlearned_examples import SETS

from llm_forget.adapters.arithmetic import combine, relative_distance
from llm_forget.adapters.lora import load_adapter
from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.requests import batches, forgetting
from llm_forget.requests.forgetting import Workshop, forget_batch
from llm_forget.requests.ledger import Ledger
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer
from llm_forget.utils.build import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows two requests and the rows to keep, and a recipe."""
    folder = tmp_path_factory.mktemp("requests")
    tokenizer, rows = tiny_tokenizer(), []
    for name in ("first", "second", "retain"):
        lines = (json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in SETS[name])
        (folder / f"{name}.jsonl").write_text("".join(lines))
        rows += encode_all(tokenizer, read_examples(DataSource(str(folder / f"{name}.jsonl"))), EncodingConfig())[0]
    model = tiny_model(tokenizer)
    memorise(model, rows, steps=140, learning_rate=5e-3)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    values = {
        "model": {"name": str(folder / "base"), "dtype": "float32"},
        "data": {"forget": {"path": "replaced"}, "retain": {"path": str(folder / "retain.jsonl")}},
        "method": {"name": "npo"},
        "adapter": {"rank": 4, "alpha": 8},
        "train": {"epochs": 24, "batch_size": 2, "learning_rate": 1e-2},
        "stop": {"forget_target": 0.1, "utility_floor": 0.0},
        "output_dir": "replaced",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


def workshop(world: Path, folder: Path) -> Workshop:
    recipe = build(UnlearnRecipe, yaml.safe_load((world / "recipe.yaml").read_text()), "recipe")
    ledger = Ledger(folder / "requests.sqlite")
    for number, name in enumerate(("first", "second")):
        ledger.add(f"R-{number}", DataSource(str(world / f"{name}.jsonl")), date(2026, 11, 2))
    return Workshop(ledger, recipe, folder / "runs", console=Console(file=io.StringIO()))


@pytest.mark.parametrize("how", ["joint", "sequential", "stacked"])
def test_each_way_forgets_and_tests_all_requests(world: Path, tmp_path: Path, how: str) -> None:
    shop = workshop(world, tmp_path)
    for number in range(2):
        done = forget_batch(shop, batches.plan(shop.ledger, [f"R-{number}"], how).id, keep=True)
        assert done.state == "done"
    first, second = (shop.ledger.tests_of(name) for name in ("B-0001", "B-0002"))
    assert [(one.request, one.verdict) for one in first] == [("R-0", "forgotten")]
    assert first[0].before > 0.8 > 0.15 > first[0].value
    assert {one.request: one.before > 0.8 for one in second} == {"R-0": True, "R-1": True}
    assert next(one for one in second if one.request == "R-1").value < 0.15
    result = json.loads((shop.folder / "B-0002" / "result.json").read_text())
    assert result["forget_rows"] == (4 if how == "joint" else 2)
    if how == "joint":
        return
    total, before, own = (
        load_adapter(one)
        for one in (shop.adapter("B-0002"), shop.adapter("B-0001"), shop.folder / "B-0002.parts" / "run" / "adapter")
    )
    assert relative_distance(total, combine([before, own], [1.0, 1.0], assume_same_base=True)) < 1e-5
    assert result["composed"]["how"] == how
    tests = forgetting.retest(shop)
    assert {one.request: one.verdict for one in tests}["R-1"] == "stays"


def test_an_interrupted_batch_goes_on_and_a_request_that_returns_is_noticed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after training; then the tests see the base in place of the second adapter, as if it had undone the first."""
    shop = workshop(world, tmp_path)
    forget_batch(shop, batches.plan(shop.ledger, ["R-0"]).id)
    name = batches.plan(shop.ledger, ["R-1"], "stacked").id

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(forgetting, "_tests", stop)
        with pytest.raises(KeyboardInterrupt):
            forget_batch(shop, name)
    assert batches.batch(shop.ledger, name).state == "running"
    monkeypatch.setattr(forgetting, "unlearn", stop)  # it is not trained again
    real = forgetting._probabilities
    monkeypatch.setattr(
        forgetting,
        "_probabilities",
        lambda shop, base, adapter, rows: {
            **real(shop, base, adapter, rows),
            **({} if adapter is None else real(shop, base, None, {"R-0": rows["R-0"]})),
        },
    )
    assert forget_batch(shop, name).state == "rejected"
    tests = {one.request: one.verdict for one in shop.ledger.tests_of(name)}
    assert tests == {"R-0": "returned", "R-1": "forgotten"}
    assert {one.id: one.state for one in shop.ledger.requests()} == {"R-0": "forgotten", "R-1": "open"}


def test_only_one_batch_at_a_time_and_only_for_the_base(world: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from llm_forget.utils.lock import locked

    shop = workshop(world, tmp_path)
    name = batches.plan(shop.ledger).id
    shop.folder.mkdir()
    (shop.folder / ".batches.lock").touch()
    import threading

    seen: list[str] = []

    def other() -> None:
        try:
            forget_batch(Workshop(Ledger(shop.ledger.path), shop.recipe, shop.folder), name)
        except UserError as error:
            seen.append(str(error))

    with locked(shop.folder / "batches"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "is being written by" in seen[0]
    with pytest.raises(UserError, match=r"model\.adapter is set"):
        forget_batch(replace(shop, recipe=replace(shop.recipe, model=replace(shop.recipe.model, adapter="x"))), name)


def test_from_request_to_answer_by_commands(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="pip install 'llm-forget[evidence]'")
    monkeypatch.chdir(tmp_path)
    assert command("keys", "new", "--to", "k", "--no-passphrase").status == 0
    assert command("requests", "add", "--id", "R-1", "--rows", world / "first.jsonl").status == 0
    assert command("requests", "batch").status == 0
    done = command("requests", "forget", "B-0001", "--config", world / "recipe.yaml")
    assert (done.status, "forgotten" in done.out) == (0, True)
    run = tmp_path / "runs" / "requests" / "B-0001"
    (tmp_path / "data").mkdir()
    for name, source in (("forget", "first"), ("retain", "retain")):
        (tmp_path / "data" / f"{name}.jsonl").write_text((world / f"{source}.jsonl").read_text())
    values = {
        "model": {"name": str(world / "base"), "adapter": str(run / "adapter"), "dtype": "float32"},
        "suite": "custom",
        "data_dir": "data",
        "output_dir": str(run),
        "overrides": {
            "perplexity": None,
            "capability": None,
            "sets.forget.generate": False,
            "sets.retain.generate": False,
        },
    }
    Path("eval.yaml").write_text(yaml.safe_dump(values))
    assert command("evaluate", "--config", "eval.yaml").status == 0
    made = command("certify", run, "--key", "k", "--request", "R-1", "--forget", world / "first.jsonl")
    assert made.status == 0, made.err
    answer = ("requests", "answer", "R-1", "--statement", run, "--key", "k.pub")
    assert "answered with" in command(*answer).out
    assert "already" in command(*answer).out
    assert command("requests", "answer", "R-2", "--statement", run, "--key", "k.pub").status == 2
    assert command("requests", "retest", "--config", world / "recipe.yaml").status == 0
    written = [one for one in tmp_path.rglob("*") if one.is_file() and one.parent != tmp_path / "data"]
    assert len(written) > 15
    assert [one for one in written if any(text.encode() in one.read_bytes() for _, text in SETS["first"])] == []
    (run / "env.json").unlink()
    assert "no certificate that holds" in command(*answer).err


def test_the_floor_of_a_sequential_batch_counts_from_the_base(world: Path, tmp_path: Path) -> None:
    """Half of 0.8 is to be kept; after a batch that left 0.6, that is two thirds of what there is."""
    from dataclasses import replace

    shop = workshop(world, tmp_path)
    shop = replace(shop, recipe=replace(shop.recipe, stop=replace(shop.recipe.stop, utility_floor=0.5)))
    name = batches.plan(shop.ledger).id
    (shop.folder / name).mkdir(parents=True)
    result = {"before": {"retain": 0.8}, "after": {"retain": 0.6}}
    for composed, floor in ((None, 0.5 * 0.8 / 0.6), ({"how": "stacked"}, 0.5)):
        (shop.folder / name / "result.json").write_text(json.dumps({**result, "composed": composed}))
        assert forgetting._floor_from_base(shop, name) == pytest.approx(floor)
