"""Row targets in training: rows leave the batch at their target, are pulled back below it, and end the run when all match."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from memorised import write_rows
from rich.console import Console

from llm_forget.cli.run import unlearn as command
from llm_forget.config import UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import RecipeError
from llm_forget.methods import Needs
from llm_forget.methods.dpo import DPO
from llm_forget.retain.nll import NLL
from llm_forget.scores import TopLogps, top_kl
from llm_forget.stop import Match, Measurement, StopRule, Verdict
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.default import scaled, settled
from llm_forget.train.objective import Objective
from llm_forget.train.row_goal import RowGoal
from llm_forget.train.step_rows import StepRows
from llm_forget.train.teacher import teacher_of
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


def test_two_sided_by_hand() -> None:
    """Target −3, slack ½: the method's loss at −2, nothing at −3.2, |−4 + 3| at −4, whose gradient points up."""
    goal = RowGoal(torch.full((3,), -3.0), torch.zeros(3))
    logps = torch.tensor([-2.0, -3.2, -4.0], requires_grad=True)
    loss = goal.two_sided(torch.full((3,), 7.0), logps, torch.arange(3))
    assert loss.tolist() == [7.0, 0.0, 1.0]
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [0.0, 0.0, -1.0]
    assert goal.active(torch.tensor([2, 1, 0])).tolist() == [True, False, True]


def test_a_step_always_has_a_row() -> None:
    """If every row is at its target, the one that is furthest from it stays, so that the step has a gradient."""
    goal = RowGoal(torch.full((3,), -3.0), torch.tensor([-3.1, -3.4, -3.2]))
    assert goal.active(torch.tensor([0, 1, 2])).tolist() == [False, True, False]


def test_reached_rows_leave_the_batch_with_their_alternatives() -> None:
    """Of three pairs f a r the second has reached its target: rows 0 2, 3 5 and 6 7 8 stay, in this order."""
    inputs = {name: torch.arange(9)[:, None] for name in ("input_ids", "attention_mask", "answer_mask")}
    inputs["forget_index"] = torch.tensor([4, 5, 6])
    chosen = StepRows(DPO().needs, NLL().needs).select(inputs, torch.tensor([True, False, True]))
    assert chosen.batch["input_ids"].flatten().tolist() == [0, 2, 3, 5, 6, 7, 8]
    assert [part.rows for part in chosen.parts.values()] == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert chosen.forget_index.tolist() == [4, 6]
    whole = StepRows(None, NLL().needs).select(inputs, None)
    assert whole.batch["input_ids"].flatten().tolist() == [6, 7, 8]


def test_the_rule_judges_the_match_from_both_sides() -> None:
    """A mean below the target is not enough; a state below the floor is never the best; the nearest match is."""
    far, near, done = Match(0.0, 0.9, 0.2, 0.8, 0.0), Match(0.01, 0.4, 0.8, 0.1, 0.1), Match(0.3, 0.1, 0.95, 0.0, 0.05)
    rule = StopRule(0.1, 0.9, 3)
    states = [(0.9, 0.95, far), (0.01, 0.95, near), (0.001, 0.95, far), (0.05, 0.8, done), (0.12, 0.93, done)]
    verdicts = [rule.judge(Measurement(step, *state)) for step, state in enumerate(states)]
    assert verdicts == [Verdict.KEEP, Verdict.KEEP, Verdict.GO_ON, Verdict.GO_ON, Verdict.REACHED]
    assert rule.known_before is True
    copy = StopRule(0.1, 0.9, 3)
    copy.load_state_dict(rule.state_dict())
    assert copy.best == rule.best == Measurement.read(asdict(rule.history[-1]))


def test_top_tokens_by_hand() -> None:
    """KL of (½, ¼, rest ¼) to (¼, ½, rest ¼) is ½ ln 2 − ¼ ln 2, however the rest is spread."""
    teacher = TopLogps(torch.tensor([[[0, 1]]]), torch.tensor([[[0.5, 0.25]]]).log())
    policy = torch.tensor([[[0.25, 0.5, 0.2, 0.05]]]).log()
    assert float(top_kl(teacher, policy)) == pytest.approx(0.25 * 0.6931, abs=1e-4)


def test_a_kept_teacher_is_the_model(memorised_folder: Path) -> None:
    """With all tokens kept, the KL between a model and its own teacher is 0, in any batch."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    rows = encode_all(tokenizer, read_examples(DataSource(str(memorised_folder / "forget.jsonl"))), EncodingConfig())[0]
    teacher, means = teacher_of(model, rows, 0, top=10_000)
    from llm_forget.data.collate import collate
    from llm_forget.model.logprobs import score_answers

    scores = score_answers(model, collate([rows[2], rows[0]], 0), keep_logits=True)
    assert scores.logits is not None
    found = top_kl(teacher.of(torch.tensor([2, 0]), scores.mask), scores.logits) * scores.mask
    assert found.abs().max() < 1e-4
    torch.testing.assert_close(means[[2, 0]], scores.mean_logps.detach(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def with_base(memorised_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned the forget rows, a base that did not, and rows that neither saw."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("model", "forget.jsonl", "retain.jsonl"):
        (folder / name).symlink_to(memorised_folder / name)
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "before")
    tokenizer.save_pretrained(folder / "before")
    unseen = [(f"Where is {name}?", f"In {place}, {name}-41.") for name, place in [("Ed", "Graz"), ("Fi", "Lyon")]]
    write_rows(folder / "holdout.jsonl", unseen)
    return folder


def recipe(folder: Path, output: Path, **changes: Any) -> UnlearnRecipe:
    values: dict[str, Any] = {
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain", "holdout")},
        "method": {"name": "grad_diff"},
        "base": str(folder / "before"),
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"epochs": 40, "batch_size": 4, "learning_rate": 1e-2},
        "stop": {"forget_target": "rows", "utility_floor": 0.5, "every": 1},
        "output_dir": str(output),
        **changes,
    }
    return build(UnlearnRecipe, values, "test")


def test_an_unbounded_method_ends_at_the_base(with_base: Path, tmp_path: Path) -> None:
    """Gradient ascent overshoots by hundreds of nats; with row targets from the base its rows end near them, on both sides."""
    record = unlearn(recipe(with_base, tmp_path / "run"), Console(file=io.StringIO()))
    assert record.row_targets is not None
    assert record.row_targets["source"] == "base and holdout"
    assert record.known_before is True
    assert "forget target reached" in record.reason
    assert record.after.match is not None
    assert record.after.match.reached


def test_without_base_the_holdout_and_without_both_a_message(with_base: Path, tmp_path: Path) -> None:
    record = unlearn(
        recipe(with_base, tmp_path / "run", base=None, train={"epochs": 1, "batch_size": 4}),
        Console(file=io.StringIO()),
    )
    assert record.row_targets is not None
    assert record.row_targets["source"] == "holdout"
    bare = {name: {"path": str(with_base / f"{name}.jsonl")} for name in ("forget", "retain")}
    with pytest.raises(RecipeError, match=r"set base, or add data\.holdout"):
        unlearn(recipe(with_base, tmp_path / "other", base=None, data=bare), Console(file=io.StringIO()))


def test_the_objective_divides_by_all_pairs() -> None:
    """A row that left the batch counts as a loss of 0, so that the rows that stay do not weigh more."""
    from llm_forget.methods.grad_ascent import GradAscent
    from llm_forget.scores import AnswerScores

    scores = AnswerScores(
        torch.tensor([[-1.0]]), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    )
    alone = Objective(GradAscent(), None).terms({"forget": scores})["forget_loss"]
    shared = Objective(GradAscent(), None).terms({"forget": scores}, torch.tensor([0]), 4)["forget_loss"]
    assert float(shared) == pytest.approx(float(alone) / 4)
    assert GradAscent().needs == Needs()


@pytest.mark.slow
def test_without_a_method_a_run_that_falls_short_exits_with_1(with_base: Path, tmp_path: Path) -> None:
    """The default takes the base, aims the adapter and writes its settings; falling short is the first thing it says."""
    given = [f"--data.{name}.path={with_base / f'{name}.jsonl'}" for name in ("forget", "retain", "holdout")]
    model = [f"--model.name={with_base / 'model'}", "--model.dtype=float32", f"--base={with_base / 'before'}"]
    with pytest.raises(SystemExit) as ended:
        command([*model, *given, f"--output_dir={tmp_path / 'run'}", "--train.epochs=1", "--train.learning_rate=1e-6"])
    assert ended.value.code == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["method"], result["reached"]) == ("base_teacher", False)
    assert result["reason"].startswith("NOT FORGOTTEN: ")
    written = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "inputs: forget" in written
    assert "virtual_neighbours" in written


def test_the_default_keeps_what_the_recipe_sets_and_scales_with_the_rows(tmp_path: Path) -> None:
    """A fifth of the rows per step, 8 to 64; more rows, larger rank. Without rows to keep, Adam's rate depends on the width."""
    values = {"model": {"name": "m"}, "data": {"forget": {"path": "f"}, "retain": {"path": "r"}}, "output_dir": "o"}
    plain = build(UnlearnRecipe, values, "test")
    found = settled(plain, base=True)
    assert found.method == {"name": "base_teacher"}
    assert found.stop.forget_target == "rows"
    assert (found.train.optimizer, found.retain.weight) == ("natural", 0.0)
    for rows, batch, gathered, epochs, rank in (
        (4, 4, 1, 80, 32),
        (37, 8, 1, 17, 32),
        (100, 8, 3, 19, 64),
        (400, 8, 8, 13, 128),
    ):
        sized = scaled(found, plain, rows=rows, width=576)
        train = sized.train
        assert (train.batch_size, train.gradient_accumulation, train.epochs) == (batch, gathered, epochs)
        assert sized.adapter is not None
        assert sized.adapter.rank == rank
    for given in ({"optimizer": "sgd"}, {"learning_rate": 1e-4}):
        kept = settled(build(UnlearnRecipe, {**values, "train": given}, "test"), base=True)
        assert kept.train.optimizer != "natural"
        assert kept.retain.weight == 2.0, "without natural steps, only the loss protects the rows to keep"
    alone = build(UnlearnRecipe, {**values, "data": {"forget": {"path": "f"}}}, "test")
    assert scaled(settled(alone, base=True), alone, rows=4, width=4 * 576).train.learning_rate == pytest.approx(2e-3)
    assert settled(plain, base=False).method == {"name": "npo"}
    assert settled(plain, base=False).stop.forget_target == "holdout", "neither base nor holdout rows: no row targets"
    near = settled(build(UnlearnRecipe, {**values, "stop": {"tolerance": 0.5}}, "test"), base=True)
    assert (near.stop.forget_target, near.stop.tolerance) == ("rows", 0.5), (
        "a tolerance alone is for the default's own targets"
    )
    own = build(UnlearnRecipe, {**values, "train": {"epochs": 3}, "retain": {"name": None}}, "test")
    assert scaled(settled(own, base=True), own, rows=4, width=None).train.epochs == 3
    assert settled(own, base=True).retain == own.retain
    named = build(UnlearnRecipe, {**values, "method": {"name": "npo"}}, "test")
    assert settled(named, base=True) is named
