"""The bars of an unlearned model on results made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from llm_forget.forgetting.bars import Bar, bars, headline, lines


def results(retain: float, auc: float | None = None, capability: float | None = 0.6) -> dict[str, Any]:
    """A result with the numbers that bars read; what is None was not measured."""
    found: dict[str, Any] = {
        "settings": {},
        "sets": {"retain": {"forget": False, "metrics": {"rougeL_recall": {"value": retain}}}},
        "capability": None if capability is None else {"acc": {"value": capability}},
    }
    if auc is not None:
        found["attacks"] = {"auc": {"loss": {"value": auc}}}
    return found


@pytest.mark.parametrize(
    ("retain", "reached", "capability", "known", "start"),
    [
        (0.88, True, 0.59, True, "FORGOTTEN: 3 of 3 bars reached; 4 not measured"),
        (0.87, True, 0.59, True, "FORGOTTEN, WITH HARM: missed: retain at 0.97"),
        (0.88, True, 0.57, True, "FORGOTTEN, WITH HARM: missed: capability within 2 points"),
        (0.88, False, 0.59, True, "NOT FORGOTTEN: missed: the run's forget target"),
        (0.88, True, 0.59, False, "NOTHING TO FORGET"),
    ],
)
def test_the_headline_names_every_bar_that_was_missed(
    retain: float, reached: bool, capability: float, known: bool, start: str
) -> None:
    """0.88 / 0.90 = 0.978 is above 0.97, and 0.87 / 0.90 = 0.967 below; 60 − 59 is within two points, 60 − 57 is not."""
    found = bars(results(retain, None, capability), target=results(0.9), oracle=None, reached=reached, known=known)
    line, good = headline(found, known)
    assert line.startswith(start)
    assert good is start.startswith("FORGOTTEN:")
    assert sum(one.startswith("–") for one in lines(found)) >= 4


def _judged(auc: float, oracle: float | None) -> list[Bar]:
    """Bars of a result without sets; only the attack counts."""
    own, other = ({"settings": {}, "sets": {}, "attacks": {"auc": {"loss": {"value": one}}}} for one in (auc, oracle))
    return bars(own, target=None, oracle=None if oracle is None else other, reached=None, known=True)


def test_the_attack_is_compared_with_the_oracle_from_both_sides() -> None:
    """0.46 against 0.55 is within 0.10; 0.46 against 0.57, or 0.35, is not. Without an oracle's AUC nothing is judged."""
    for auc, good in ((0.55, True), (0.57, False), (0.35, False)):
        found = _judged(auc, 0.46)
        attack = next(one for one in found if one.name.startswith("loss"))
        assert attack.reached is good
    found = _judged(0.5, None)
    assert next(one for one in found if one.name.startswith("loss")).value == "needs --oracle"
