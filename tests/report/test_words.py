"""Verdicts in words from tables made by hand, and where a plot writes the names of its points."""

from __future__ import annotations

import pandas as pd
import pytest

from llm_forget.report.plots import _text_places
from llm_forget.report.words import judge

FORGET, RETAIN, HOLDOUT = "forget.probability", "retain.probability", "holdout.probability"


def table(**rows: dict[str, tuple[float, float] | float]) -> pd.DataFrame:
    """Runs by name, metrics as (value, half the interval)."""
    values: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        values[name] = {}
        for metric, given in row.items():
            value, half = given if isinstance(given, tuple) else (given, 0.02)
            values[name] |= {metric: value, f"{metric}.low": value - half, f"{metric}.high": value + half}
    frame = pd.DataFrame.from_dict(values, orient="index")
    ends = {FORGET: "low", RETAIN: "none", HOLDOUT: "none", "perplexity": "none"}
    frame.attrs["directions"] = {name: end for name, end in ends.items() if name in frame}
    return frame


@pytest.mark.parametrize(
    ("left", "level"),
    [(0.12, 3), (0.24, 2), (0.5, 1), (0.89, 0), (0.05, 3)],
)
def test_how_much_is_forgotten_goes_by_the_way_to_the_oracle(left: float, level: int) -> None:
    """From 0.9 to 0.1: 0.24 is 82 % of the way, 0.5 half, 0.89 1 %; 0.12 ± 0.02 reaches 0.1 ± 0.02, and less than it counts."""
    frame = table(target={FORGET: 0.9}, oracle={FORGET: 0.1}, run={FORGET: left})
    assert judge(frame, None, "run", "target", "oracle").level == level


def test_without_an_oracle_it_is_the_way_to_nothing_and_never_the_whole_of_it() -> None:
    frame = table(target={FORGET: 0.9}, run={FORGET: 0.01})
    assert judge(frame, None, "run", "target", None).level == 2


def test_without_an_oracle_shared_words_are_not_judged() -> None:
    """ROUGE-L of 0.36 may be what any answer has; beside an oracle of 0.1 it is 71 % of the way from 1."""
    rouge = "forget.rougeL_recall"
    rows = {
        "target": {FORGET: 0.99, rouge: 1.0},
        "run": {FORGET: 0.01, rouge: 0.36},
        "oracle": {FORGET: 0.01, rouge: 0.1},
    }
    frame = table(**rows)
    frame.attrs["directions"][rouge] = "low"
    assert judge(frame, None, "run", "target", None).level == 2
    assert judge(frame, None, "run", "target", "oracle").level == 1


def test_without_a_target_nothing_is_judged() -> None:
    assert judge(table(run={FORGET: 0.01}), None, "run", None, None).headline.startswith("Not judged")


def test_harm_is_a_loss_above_the_rule_that_the_intervals_are_sure_of() -> None:
    """0.8 → 0.5 with intervals apart is harm; with intervals that meet it is not sure; 0.8 → 0.77 is under 5 %."""

    def harmed(value: float, half: float) -> list[str]:
        frame = table(target={FORGET: 0.9, RETAIN: (0.8, half)}, run={FORGET: 0.1, RETAIN: (value, half)})
        return judge(frame, None, "run", "target", None).harmed

    assert harmed(0.5, 0.05) == ["retain"]
    assert harmed(0.5, 0.2) == []
    assert harmed(0.77, 0.001) == []


def test_perplexity_is_harmed_when_it_grows() -> None:
    for after, harmed in ((30.0, ["perplexity"]), (10.0, [])):
        frame = table(target={FORGET: 0.9, "perplexity": (20.0, 1.0)}, run={FORGET: 0.1, "perplexity": (after, 1.0)})
        assert judge(frame, None, "run", "target", None).harmed == harmed


def test_what_nobody_learned_cannot_be_harmed() -> None:
    frame = table(target={FORGET: 0.9, HOLDOUT: 0.3}, run={FORGET: 0.1, HOLDOUT: 0.05})
    assert judge(frame, None, "run", "target", None).harmed == ["holdout"]
    frame.attrs["never_learned"] = {"holdout"}
    assert judge(frame, None, "run", "target", None).harmed == []


def test_names_of_points_that_are_close_stand_in_different_corners() -> None:
    """Two points side by side, and one far away at the right edge, whose name must go to the left."""
    rows = pd.DataFrame({"x": [0.04, 0.06, 0.9], "y": [0.894, 0.9, 0.87]}, index=["grad_diff", "npo", "target"])
    rows["y.low"], rows["y.high"] = rows["y"] - 0.03, rows["y"] + 0.03
    places = _text_places(rows, "x", "y")
    assert places["grad_diff"] != places["npo"]
    assert places["target"].endswith("left")
