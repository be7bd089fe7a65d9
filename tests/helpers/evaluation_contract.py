"""Check the contract of a metric, attack or aggregate by its name, in the package and in copies of it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from metric_examples import Token, scores_of

from llm_forget.errors import RecipeError
from llm_forget.evaluation.aggregate import Estimate
from llm_forget.evaluation.aggregates import ROLES, Aggregate, ScoredSet, SuiteScores
from llm_forget.evaluation.attacks import Attack, AttackRows
from llm_forget.evaluation.metrics import AnswerGroup, Metric, SetScores, averaged_values
from llm_forget.evaluation.tokens import Floats
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class, names_in

METRICS = ("llm_forget.evaluation.metrics", "per_example")
ATTACKS = ("llm_forget.evaluation.attacks", "row_scores")
AGGREGATES = ("llm_forget.evaluation.aggregates", "value")
_NAN: Token = (math.nan, False, math.nan, math.nan)


@dataclass(frozen=True)
class Asked:
    """One example and the outputs of a model for it."""

    answer: list[Token]
    paraphrases: list[list[Token]]
    wrong_answers: list[list[Token]]
    generated: str
    reference: str
    kl: list[float]
    norm: float
    reference_logp: float


def examples(count: int = 6, seed: int = 0) -> list[Asked]:
    """Return examples of different lengths, each with one or two other answers."""
    draw = np.random.default_rng(seed)
    words = ["the", "cat", "sat", "on", "a", "red", "mat", "in", "riga", "today"]

    def row(length: int) -> list[Token]:
        return [
            (float(-3 * draw.random()), bool(draw.random() > 0.4), float(-2 - draw.random()), float(1 + draw.random()))
            for _ in range(length)
        ]

    found = []
    for index in range(count):
        answer = row(2 + index % 4)
        said, right = (" ".join(draw.permutation(words)[: 4 + index % 3]) for _ in range(2))
        others = [[row(3 + place) for place in range(1 + index % 2)] for _ in range(2)]
        kl = [float(draw.random()) for _ in answer]
        found.append(Asked(answer, *others, said, right, kl, float(1 + draw.random()), float(-2 * draw.random())))
    return found


def set_scores(asked: Sequence[Asked], *, forget: bool = True, known: Sequence[str] | None = None) -> SetScores:
    """Return the scores of a suite, or only those in ``known``. Lengths of answers are always included."""

    def has(name: str) -> bool:
        return known is None or name in known

    def group(kind: str) -> AnswerGroup | None:
        rows = [(owner, row) for owner, one in enumerate(asked) for row in getattr(one, kind)]
        owners = np.array([owner for owner, _ in rows], dtype=np.int64)
        return AnswerGroup(scores_of([row for _, row in rows]), owners, len(asked)) if has(kind) else None

    answers = [one.answer if has("answer") else [_NAN] * len(one.answer) for one in asked]
    return SetScores(
        forget,
        scores_of(answers),
        paraphrases=group("paraphrases"),
        wrong_answers=group("wrong_answers"),
        generated=[one.generated for one in asked] if has("generated") else None,
        references=[one.reference for one in asked],
        target_kl=np.concatenate([one.kl for one in asked]) if has("target_kl") else None,
    )


def attack_rows(asked: Sequence[Asked], known: Sequence[str] | None = None) -> AttackRows:
    """Return the inputs of an attack, or only those in ``known``."""

    def has(name: str) -> bool:
        return known is None or name in known

    return AttackRows(
        scores_of([one.answer if has("tokens") else [_NAN] * len(one.answer) for one in asked]),
        [one.reference for one in asked] if has("texts") else None,
        np.array([one.reference_logp for one in asked]) if has("reference_mean_logps") else None,
        np.array([one.norm for one in asked]) if has("gradient_norms") else None,
    )


def unscored(one: Asked) -> Asked:
    """Return an example for which the model gave only NaN."""

    def all_nan(row: list[Token]) -> list[Token]:
        return [_NAN for _ in row]

    return replace(
        one,
        answer=all_nan(one.answer),
        paraphrases=[all_nan(row) for row in one.paraphrases],
        wrong_answers=[all_nan(row) for row in one.wrong_answers],
        kl=[math.nan for _ in one.kl],
        norm=math.nan,
        reference_logp=math.nan,
    )


def check_declaration(package: str, function: str, name: str) -> Any:
    """Check that the file has docstrings and a frozen dataclass with a source, and that invalid settings are refused by name."""
    cls: Any = find_class(package, name, function)
    assert cls.__dataclass_params__.frozen, f"{name} is not frozen"
    assert (importlib.import_module(cls.__module__).__doc__ or "").strip()
    assert (cls.__doc__ or "").strip()
    assert (getattr(cls, function).__doc__ or "").strip()
    assert cls.paper.strip()
    with pytest.raises(RecipeError, match="no_such_setting"):
        build(cls, {"no_such_setting": 1}, name)
    for one in fields(cls):
        with pytest.raises(RecipeError, match=one.name):
            build(cls, {one.name: [{}]}, name)
    made = cls()
    assert made == cls()
    assert isinstance(made.label, str)
    assert made.label
    return made


def check_bounds(bounds: tuple[float, float]) -> None:
    low, high = bounds
    assert low < high


def check_rows(compute: Callable[[Sequence[Asked]], Floats], asked: Sequence[Asked]) -> None:
    """Check that there is one float64 per example, and that it does not depend on the order or on other rows."""
    found = compute(asked)
    assert found.shape == (len(asked),)
    assert found.dtype == np.float64
    assert not np.isnan(found).any()
    order = np.random.default_rng(1).permutation(len(asked))
    np.testing.assert_allclose(compute([asked[index] for index in order]), found[order], rtol=1e-12)
    np.testing.assert_allclose(compute(asked[1:3]), found[1:3], rtol=1e-12)


def check_metric(name: str) -> None:
    metric = check_declaration(*METRICS, name)
    assert isinstance(metric, Metric)
    check_bounds(metric.bounds)
    assert metric.forgotten in ("low", "high", "none")
    assert metric.needs
    assert set(metric.needs) <= {"answer", "paraphrases", "wrong_answers", "generated", "target_kl"}
    asked = examples()
    check_rows(lambda some: metric.per_example(set_scores(some)), asked)
    # inputs outside `needs` change nothing, except that paraphrases may replace the answer, as in the truth ratio
    least = metric.per_example(set_scores(asked, known=[*metric.needs, "paraphrases"]))
    np.testing.assert_array_equal(least, metric.per_example(set_scores(asked)))
    assert not np.isnan(metric.per_example(set_scores(asked, known=metric.needs))).any(), "it needs more than it says"
    for forget in (True, False):
        averaged = averaged_values(metric, metric.per_example(set_scores(asked, forget=forget)), forget=forget)
        assert (averaged >= metric.bounds[0] - 1e-12).all()
        assert (averaged <= metric.bounds[1] + 1e-12).all()
    if set(metric.needs) != {"generated"}:  # any text is accepted
        found = metric.per_example(set_scores([unscored(asked[0]), *asked[1:]]))
        assert np.isnan(found[0]), "an example without a score is NaN, not a number"
        np.testing.assert_array_equal(found[1:], metric.per_example(set_scores(asked))[1:])


def check_attack(name: str) -> None:
    attack = check_declaration(*ATTACKS, name)
    assert isinstance(attack, Attack)
    assert attack.needs
    assert set(attack.needs) <= {"tokens", "texts", "reference_mean_logps", "gradient_norms"}
    asked = examples()
    check_rows(lambda some: attack.row_scores(attack_rows(some)), asked)
    least = attack.row_scores(attack_rows(asked, known=attack.needs))
    np.testing.assert_array_equal(least, attack.row_scores(attack_rows(asked)))
    found = attack.row_scores(attack_rows([unscored(asked[0]), *asked[1:]]))
    assert np.isnan(found[0]), "a row without a score is NaN, not a number"
    np.testing.assert_array_equal(found[1:], least[1:])
    # members score higher: the two rows differ only in how well the model knows them
    one = asked[0]
    known = replace(one, answer=[(-0.01, True, *token[2:]) for token in one.answer], norm=0.1)
    unknown = replace(one, answer=[(-6.0, False, *token[2:]) for token in one.answer], norm=9.0)
    high, low = attack.row_scores(attack_rows([known, unknown]))
    assert high > low


def suite_scores(change: Callable[[Floats], Floats] = lambda one: one, *, count: int = 8) -> SuiteScores:
    """Return scores of three sets for a model and all controls, with a label for every metric and attack."""
    labels = [find_class(METRICS[0], name, METRICS[1])().label for name in names_in(*METRICS)]
    labels += ["attack_" + find_class(ATTACKS[0], name, ATTACKS[1])().label for name in names_in(*ATTACKS)]
    draw = np.random.default_rng(0)

    def sets() -> dict[str, ScoredSet]:
        return {
            name: ScoredSet(name == "forget", {label: change(draw.random(count)) for label in labels})
            for name in ("forget", "retain", "holdout")
        }

    return SuiteScores(sets(), {role: sets() for role in ROLES})


def only(known: SuiteScores, needs: Sequence[str]) -> SuiteScores:
    """Return the scores reduced to the needed ones."""

    def kept(sets: Mapping[str, ScoredSet]) -> dict[str, ScoredSet]:
        return {
            name: ScoredSet(one.forget, {label: own for label, own in one.scores.items() if label in needs})
            for name, one in sets.items()
        }

    controls = {role: kept(sets) for role, sets in known.controls.items() if role in needs}
    return SuiteScores(kept(known.sets), controls, known.seed)


def check_aggregate(name: str) -> None:
    aggregate = check_declaration(*AGGREGATES, name)
    assert isinstance(aggregate, Aggregate)
    check_bounds(aggregate.bounds)
    assert aggregate.needs
    whole = suite_scores()
    assert all(whole.has(need) for need in aggregate.needs), "needs are roles of controls and labels of scores"
    found = aggregate.value(whole)
    assert isinstance(found, Estimate)
    assert found.n > 0
    assert aggregate.bounds[0] <= found.value <= aggregate.bounds[1]
    if not math.isnan(found.low):
        assert found.low <= found.value <= found.high
    assert aggregate.value(only(whole, aggregate.needs)) == found == aggregate.value(whole)
    order = np.random.default_rng(1).permutation(8)
    assert aggregate.value(suite_scores(lambda one: one[order])).value == pytest.approx(found.value, rel=1e-9)
    if set(aggregate.needs) & set(ROLES):  # a control measured on other sets, or without this label
        assert math.isnan(aggregate.value(SuiteScores(whole.sets, {role: {} for role in ROLES})).value)
    nothing = aggregate.value(suite_scores(lambda one: np.full(len(one), np.nan)))
    assert math.isnan(nothing.value), "without a score there is no number"


def check_section_statistic(name: str) -> None:
    """Check a file of ``aggregates`` with its own section: one frozen dataclass that describes its value."""
    module = importlib.import_module(f"{AGGREGATES[0]}.{name}")
    assert (module.__doc__ or "").strip()
    own: list[Any] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "bounds")
    ]
    assert len(own) == 1
    assert own[0].__dataclass_params__.frozen
    assert own[0].paper.strip()
    assert own[0].forgotten in ("low", "high", "none")
    check_bounds(own[0].bounds)
    assert {"n", "n_nan"} <= {one.name for one in fields(own[0])}
