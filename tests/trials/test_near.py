"""New settings near the front: they differ a little from those of a good trial, and from those of every trial before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from llm_forget.trials import near
from llm_forget.trials.journal import quiet

RANKS, METHODS = (4, 8, 16, 32), ("a", "b", "c")


def study_of(
    *ended: tuple[float, float, dict[str, Any]], broken: tuple[int, ...] = (), pruned: tuple[int, ...] = ()
) -> Any:
    """Return the trials of a study with these distances, harms and settings."""
    quiet()
    study = optuna.create_study(directions=["minimize", "minimize"])
    for number, (distance, harm, settings) in enumerate(ended):
        study.enqueue_trial({"method": "a", "rank": 16, "rate": 1.0, **settings})
        trial = study.ask()
        trial.suggest_categorical("method", METHODS)
        trial.suggest_categorical("rank", RANKS)
        trial.suggest_float("rate", 0.25, 4.0, log=True)
        trial.set_constraint("retain", 0.1 if number in broken else -0.1)
        if number in pruned:
            trial.set_user_attr("pruned_at", 3)
        study.tell(trial, [distance, harm])
    return study.get_trials()


@pytest.fixture
def parents_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[FrozenTrial]], Counter[str]]:
    """Return how often each method, which marks a trial, is the start of new settings."""
    monkeypatch.setattr(near, "_changed", lambda parent, *_: dict(parent.params))

    def count(trials: list[FrozenTrial]) -> Counter[str]:
        chance = random.Random(0)
        found = [near.near_front(trials, chance, lambda _: object()) for _ in range(60)]
        return Counter(one["method"] for one in found if one is not None)

    return count


def test_settings_change_in_few_places_and_by_little() -> None:
    (trial,) = study_of((0.5, 0.1, {}))
    chance = random.Random(1)
    for _ in range(50):
        found = near.near_front([trial], chance)
        assert found is not None
        changed = [name for name, value in found.items() if value != trial.params[name]]
        assert 1 <= len(changed) <= 3
        assert found["rank"] in (8, 16, 32), "the next one of the list"
        assert 0.25 <= found["rate"] <= 4.0


def test_a_worse_a_pruned_and_a_broken_trial_are_no_start(parents_of: Callable[..., Counter[str]]) -> None:
    good, worse = (0.5, 0.1, {"method": "a"}), (0.6, 0.2, {"method": "b"})
    best = (0.1, 0.01, {"method": "c"})
    assert parents_of(study_of(good, worse, best)) == {"c": 60}
    assert parents_of(study_of(good, worse, best, broken=(2,))) == {"a": 60}
    assert parents_of(study_of(good, worse, best, pruned=(2,))) == {"a": 60}
    assert parents_of(study_of(best, broken=(0,))) == {"c": 60}, "where no trial keeps the floors, all count"


def test_the_trial_that_alone_dominates_most_is_taken_most(parents_of: Callable[..., Counter[str]]) -> None:
    """Between (3.3, 0) and (0.5, 0.1) the second dominates nearly all of the area."""
    counted = parents_of(study_of((3.3, 0.0, {"method": "b"}), (0.5, 0.1, {"method": "a"})))
    assert counted["a"] > 50
    shared = parents_of(study_of((2.0, 0.1, {"method": "b"}), (1.0, 0.5, {"method": "a"})))
    assert shared["a"] > 10 < shared["b"]


@pytest.mark.parametrize("trials", [[], study_of((0.1, 0.1, {}), pruned=(0,))])
def test_there_may_be_nothing_to_start_from(trials: list[FrozenTrial]) -> None:
    assert near.near_front(trials, random.Random(0)) is None


def test_settings_without_effect_make_no_new_run() -> None:
    """Where the rate has no effect, a change of the rate alone is no new run; where nothing has, there is none."""
    trials, chance = study_of((0.5, 0.1, {})), random.Random(0)

    def key(settings: Any) -> object:
        return settings["method"], settings["rank"]

    found = [near.near_front(trials, chance, key) for _ in range(40)]
    assert all(one is not None and key(one) != ("a", 16) for one in found)
    assert near.near_front(trials, chance, lambda _: "the same") is None


def test_a_choice_whose_trials_were_ended_early_is_seldom_made_again() -> None:
    """Method b was ended early nine times, c was never tried: 1 / 10 against 1."""
    trials, chance = (
        study_of((0.5, 0.1, {}), *[(0.9, 0.9, {"method": "b"})] * 9, pruned=tuple(range(1, 10))),
        random.Random(0),
    )
    found = [near.near_front(trials, chance) for _ in range(300)]
    counted = Counter(one["method"] for one in found if one is not None)
    assert counted["c"] > 5 * counted["b"] > 0


def test_more_steps_than_a_run_that_reached_its_target_make_no_new_run() -> None:
    quiet()
    study = optuna.create_study(directions=["minimize", "minimize"])
    for reached in (True, False):
        study.enqueue_trial({"steps": 1.0, "rate": 1.0})
        trial = study.ask()
        trial.suggest_categorical("steps", (0.5, 1.0, 2.0))
        trial.suggest_float("rate", 0.25, 4.0)
        trial.set_user_attr("reached", reached)
        study.tell(trial, [0.5, 0.1])
    one, other = study.get_trials()
    assert near._only_longer({"steps": 2.0, "rate": 1.0}, one, dict)
    assert not near._only_longer({"steps": 2.0, "rate": 1.5}, one, dict)
    assert not near._only_longer({"steps": 0.5, "rate": 1.0}, one, dict)
    assert not near._only_longer({"steps": 2.0, "rate": 1.0}, other, dict)
