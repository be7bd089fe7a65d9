"""Test the contract of all metrics, attacks and aggregates, and that a new file needs no other change."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from evaluation_contract import (
    AGGREGATES,
    ATTACKS,
    METRICS,
    check_aggregate,
    check_attack,
    check_metric,
    check_section_statistic,
)
from package_copy import copy_package, imported_from

from llm_forget.utils.plugins import names_in


@pytest.mark.parametrize("name", names_in(METRICS[0]))
def test_metric(name: str) -> None:
    pytest.importorskip("rouge_score")
    check_metric(name)


@pytest.mark.parametrize("name", names_in(ATTACKS[0]))
def test_attack(name: str) -> None:
    check_attack(name)


@pytest.mark.parametrize("name", names_in(AGGREGATES[0]))
def test_aggregate(name: str) -> None:
    if name in names_in(*AGGREGATES):
        check_aggregate(name)
    else:
        check_section_statistic(name)


METRIC = '''"""Worst token: the lowest log-prob of an answer."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.metrics import Direction, Known, SetScores
from llm_forget.evaluation.tokens import Floats


@dataclass(frozen=True)
class WorstToken:
    """Probability of the token that surprises most."""

    paper: ClassVar[str] = "made up for a test"
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    forgotten: ClassVar[Direction] = "low"
    needs: ClassVar[tuple[Known, ...]] = ("answer",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "worst_token"

    def per_example(self, known: SetScores) -> Floats:
        """(E,) exp of the lowest log-prob."""
        rows = [known.answer.row(index).token_logps for index in range(len(known.answer))]
        return np.exp([row.min() if len(row) else np.nan for row in rows])
'''
ATTACK = '''"""Greedy attack: a model generates the text it was trained on."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.attacks import AttackRows, Input
from llm_forget.evaluation.tokens import Floats


@dataclass(frozen=True)
class Greedy:
    """Share of tokens that are the arg-max."""

    paper: ClassVar[str] = "made up for a test"
    needs: ClassVar[tuple[Input, ...]] = ("tokens",)

    @property
    def label(self) -> str:
        """Name of its numbers."""
        return "greedy"

    def row_scores(self, rows: AttackRows) -> Floats:
        """(E,) in [0, 1]."""
        hits = rows.tokens.row_means(rows.tokens.hits)
        return np.where(np.isnan(rows.tokens.mean_logps()), np.nan, hits)
'''
AGGREGATE = '''"""Gap: how much more likely the answers to keep are than those to forget."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llm_forget.evaluation.aggregate import Estimate, interval
from llm_forget.evaluation.aggregates import SuiteScores


@dataclass(frozen=True)
class Gap:
    """Mean probability of the other sets less that of the forget sets."""

    scale: float = 1.0

    paper: ClassVar[str] = "made up for a test"
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    needs: ClassVar[tuple[str, ...]] = ("probability",)

    @property
    def label(self) -> str:
        """Name of its number."""
        return "gap"

    def value(self, known: SuiteScores) -> Estimate:
        """The difference of two means, resampled within each."""
        forget, kept = (known.column("probability", forget=one) for one in (True, False))
        if forget is None or kept is None:
            return Estimate(np.nan, 0, 0, np.nan, np.nan)
        both = np.concatenate([forget, kept])
        n_nan = int(np.isnan(both).sum())
        forget, kept = forget[~np.isnan(forget)], kept[~np.isnan(kept)]
        if not len(forget) or not len(kept):
            return Estimate(np.nan, 0, n_nan, np.nan, np.nan)
        sizes = {"forget": len(forget), "kept": len(kept)}
        low, high = interval(
            sizes, lambda rows: self.scale * (kept[rows["kept"]].mean(-1) - forget[rows["forget"]].mean(-1)), seed=known.seed
        )
        value = self.scale * float(kept.mean() - forget.mean())
        return Estimate(value, len(both) - n_nan, n_nan, low, high, known.seed)
'''


def test_a_new_metric_attack_and_aggregate_are_one_file_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a copy of the package without other changes, check the contract, a suite, its file, and the spread over two runs."""
    package = copy_package(tmp_path)
    for place, text in (("metrics/worst_token", METRIC), ("attacks/greedy", ATTACK), ("aggregates/gap", AGGREGATE)):
        (package / "evaluation" / f"{place}.py").write_text(text, encoding="utf-8")
    with imported_from(tmp_path):
        import llm_forget

        assert Path(llm_forget.__file__).is_relative_to(tmp_path)
        contract = importlib.import_module("evaluation_contract")
        contract.check_metric("worst_token")
        contract.check_attack("greedy")
        contract.check_aggregate("gap")
        _measure_with_the_new_files(tmp_path)
    shown = capsys.readouterr().out
    assert "  worst_token  0." in shown
    assert "AUC of the membership attacks (forget against retain)\n  greedy" in shown
    assert "\n  gap " in shown


def _measure_with_the_new_files(folder: Path) -> None:
    from evaluation_examples import tiny_model, write_sets

    from llm_forget.data.examples import DataSource
    from llm_forget.evaluation.evaluate import show
    from llm_forget.evaluation.membership import AttacksConfig
    from llm_forget.evaluation.results import read_results, write_results
    from llm_forget.evaluation.run_suite import run_suite
    from llm_forget.evaluation.seeds import over_seeds
    from llm_forget.evaluation.sets import SetConfig
    from llm_forget.evaluation.suite import Suite
    from llm_forget.runs import load_runs
    from llm_forget.testing import tiny_tokenizer

    write_sets(folder)
    sets = {
        name: SetConfig(DataSource(str(folder / f"{name}.jsonl")), answers=["answer"], generate=False)
        for name in ("forget", "retain")
    }
    attacks = AttacksConfig("forget", "retain", ["greedy"])
    suite = Suite(sets, ["probability", "worst_token"], attacks=attacks, name="tiny")
    found = [run_suite(suite, tiny_model(seed), tiny_tokenizer()) for seed in (0, 1)]
    file = folder / "runs/one/eval/tiny.json"
    write_results(found[0], file)
    assert read_results(file) == found[0]
    assert "attack_greedy" in next(iter(found[0]["sets"]["retain"]["examples"].values()))
    assert found[0]["aggregates"]["gap"]["n"] == 10
    assert over_seeds(found)["aggregates.gap"].n == 2
    assert "aggregates.gap" in str(list(load_runs(folder / "runs").columns))
    show(found[0], "runs/one")


def test_a_file_that_breaks_the_contract_is_found(tmp_path: Path) -> None:
    """Break the contract with undeclared needs, low scores for members, and NaN averaged as 0."""
    package = copy_package(tmp_path) / "evaluation"
    (package / "metrics/worst_token.py").write_text(METRIC.replace('("answer",)', '("generated",)'), encoding="utf-8")
    (package / "attacks/greedy.py").write_text(ATTACK.replace("np.nan, hits)", "np.nan, -hits)"), encoding="utf-8")
    careless = AGGREGATE.replace(
        "both = np", "forget, kept = np.nan_to_num(forget), np.nan_to_num(kept)\n        both = np"
    )
    (package / "aggregates/gap.py").write_text(careless, encoding="utf-8")
    with imported_from(tmp_path):
        contract = importlib.import_module("evaluation_contract")
        for check, name in (("metric", "worst_token"), ("attack", "greedy"), ("aggregate", "gap")):
            with pytest.raises(AssertionError):
                getattr(contract, f"check_{check}")(name)
