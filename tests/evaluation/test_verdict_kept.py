"""Test the verdict on what must stay: kept, harmed, or too few rows to tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
from verdict_examples import Result, answers, entry, keep, line, of, result

from llm_forget.evaluation.verdict import Verdict


def kept(own: float, width: float | None, before: float = 0.8, metric: str = "probability") -> Verdict:
    forget = {"probability": entry(0.1)}
    target = result({"probability": entry(0.9)}, {metric: keep(before, width)})
    return of(result(forget, {metric: keep(own, width)}), target)


@pytest.mark.parametrize(
    ("own", "width", "meaning", "headline"),
    [
        (0.48, 0.05, "Harmed: 40 % worse than before unlearning.", "Harmed: retain."),
        (
            0.72,
            0.25,
            "Too few rows to tell whether it is kept: a loss of 10 % [",
            "to tell whether it is kept: retain",
        ),
        (0.78, 0.005, "Kept: at most 3.3 % worse than before unlearning.", "Kept within 5%: retain."),
        (
            0.77,
            0.05,
            "Too few rows to tell whether it is kept: a loss of 3.8 %",
            "to tell whether it is kept: retain",
        ),
        (0.95, 0.05, "Kept: better than before unlearning.", "Kept within 5%: retain."),
        (0.48, None, "There is no interval, so it cannot be told", "to tell whether it is kept: retain."),
    ],
)
def test_what_must_stay_is_kept_or_harmed_or_cannot_be_told(
    own: float, width: float | None, meaning: str, headline: str
) -> None:
    """Headline and finding agree."""
    found = kept(own, width)
    assert found.harmed == (("retain",) if meaning.startswith("Harmed") else ())
    assert meaning in line(found, "retain")
    assert headline in found.headline


def test_pairs_show_what_single_intervals_hide() -> None:
    """Every example loses 0.1 of about 0.8, which is 12.5 %; the paired change has no spread."""

    def run(shift: float, rows: int = 12) -> Result:
        scores = [0.6 + 0.4 * i / (rows - 1) + shift for i in range(rows)]
        found = result({"probability": entry(0.1)}, {"probability": keep(sum(scores) / rows, 0.2)})
        found["sets"]["retain"]["examples"] = {f"row{i}": {"probability": one} for i, one in enumerate(scores)}
        return found

    found = of(run(-0.1), run(0.0))
    assert found.harmed == ("retain",)
    assert "change -0.100 [-0.100, -0.100]). Harmed: 12 % worse" in line(found, "retain")
    assert "Kept: at most 2.7 % worse" in line(of(run(-0.02), run(0.0)), "retain")
    # a handful of rows proves nothing, however equal they are
    assert "about 10 would do" in line(of(run(0.0, 5), run(0.0, 5)), "retain")


def test_answers_right_before_and_after_do_not_show_that_none_was_lost() -> None:
    """With 40 questions all answered as before, some may still be lost: up to (1 + 1.68) / 41 of a half."""

    def run(rows: int) -> Result:
        correct = {f"q{i}": [i % 2 == 0, True] for i in range(rows)}
        return answers(0.1, capability={"task": "quiz", "acc": keep(0.5), "correct": correct})

    assert "Too few rows to tell whether it is kept" in line(of(run(40), run(40)), "quiz accuracy")
    assert "Kept" in line(of(run(400), run(400)), "quiz accuracy")


def test_perplexities_are_paired_by_window() -> None:
    """The windows differ by a factor of e², and every window's perplexity rises by 2 % or by 20 %."""

    def run(rise: float) -> Result:
        logps = [-2.0 - 2 * (index % 2) - math.log1p(rise) for index in range(20)]
        parts = {"window_mean_logps": logps, "window_tokens": [64] * 20}
        return answers(0.1, perplexity={**keep(math.exp(3 + math.log1p(rise)), 15.0), **parts})

    assert "Kept: at most 2.0 % worse" in line(of(run(0.02), run(0.0)), "perplexity")
    assert of(run(0.2), run(0.0)).harmed == ("perplexity",)


def test_retained_sets_are_compared_with_the_target_before_the_oracle() -> None:
    own, other = result(retain={"probability": keep(0.5)}), result(retain={"probability": keep(0.2)})
    assert "worse than before unlearning" in line(of(own, result(retain={"probability": keep(0.9)}), other), "retain")
    assert "Kept: better than the oracle." in line(of(own, None, other), "retain")


def test_lower_can_be_better() -> None:
    assert kept(0.5, 0.05, before=0.1, metric="collapse").harmed == ("retain",)
    assert kept(0.1, 0.05, before=0.5, metric="collapse").harmed == ()
    # stored as max(0, 1 − R) in a set to keep
    assert kept(0.3, 0.05, before=0.8, metric="truth_ratio_arithmetic").harmed == ("retain",)
    assert kept(0.8, 0.05, before=0.3, metric="truth_ratio_arithmetic").harmed == ()
    # a rate of 0 before has no relative loss
    assert kept(0.3, 0.05, before=0.0, metric="refusal").harmed == ("retain",)

    def perplexity(value: float) -> Result:
        return answers(0.1, perplexity=keep(value, 1.0))

    assert of(perplexity(30.0), perplexity(20.0)).harmed == ("perplexity",)
    assert of(perplexity(10.0), perplexity(20.0)).harmed == ()


def test_the_distance_to_the_target_is_compared_with_that_of_the_oracle() -> None:
    """The target's distance to itself is 0, which no other model can reach, so the oracle is the comparison."""

    def moved(value: float) -> Result:
        return result(retain={"kl_to_target": keep(value)}, kl_to_target=keep(value))

    assert of(moved(0.4), moved(0.0), moved(0.5)).harmed == ()
    assert of(moved(0.9), moved(0.0), moved(0.5)).harmed == ("retain", "KL to the target")
    assert of(moved(0.9), moved(0.0), None).findings == []


def test_sets_that_no_model_learned_cannot_be_harmed() -> None:
    def holdout(value: float, **more: Any) -> Result:
        found = answers(0.1, **more)
        found["sets"]["holdout"] = {"forget": False, "metrics": {"probability": keep(value)}}
        return found

    assert of(holdout(0.05), holdout(0.3)).harmed == ("holdout",)
    found = of(holdout(0.05, attacks={"nonmembers": "holdout", "auc": {}}), holdout(0.3))
    assert found.harmed == ()
    assert "Lower; no model was trained on this set." in line(found, "holdout")


def test_unmeasured_sets_are_not_called_unharmed() -> None:
    assert of(answers(0.1)).headline.endswith("Harm to other knowledge was not judged.")
