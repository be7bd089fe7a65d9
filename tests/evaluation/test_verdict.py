"""Test the verdict: each rule on both sides of its limit, on results made by hand."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.evaluation.verdict import Verdict, judge, verdict

Entry = dict[str, Any]
Result = dict[str, Any]


def entry(value: float | None, width: float | None = 0.05, forgotten: str = "low", **more: Any) -> Entry:
    low, high = (None, None) if value is None or width is None else (value - width, value + width)
    return {"value": value, "low": low, "high": high, "n": 20, "n_nan": 0, "forgotten": forgotten} | more


def keep(value: float, width: float | None = 0.05) -> Entry:
    return entry(value, width, "none")


def result(forget: dict[str, Entry] | None = None, retain: dict[str, Entry] | None = None, **more: Any) -> Result:
    sets = {"forget": {"forget": True, "metrics": forget or {}}, "retain": {"forget": False, "metrics": retain or {}}}
    return {"sets": sets, **more}


def answers(value: float, width: float | None = 0.05, **more: Any) -> Result:
    """Return a result with one main forget figure."""
    return result({"probability": entry(value, width)}, **more)


TARGET, ORACLE = answers(0.9), answers(0.1)


def of(own: Result, target: Result | None = TARGET, oracle: Result | None = ORACLE, **more: Result) -> Verdict:
    given = {"target": target, "oracle": oracle, **more}
    return judge(own, {role: one for role, one in given.items() if one is not None})


def line(found: Verdict, start: str) -> str:
    (text,) = [one.text for one in found.findings if one.text.startswith(start)]
    return text


# Amount of forgetting.


@pytest.mark.parametrize(
    ("left", "width", "level", "start"),
    [
        (0.12, 0.05, 3, "Forgotten: no measurable difference from a model that never saw the data."),
        (0.24, 0.05, 2, "Mostly forgotten: 82 % of the way from the target to the oracle."),
        (0.50, 0.05, 1, "Partly forgotten: 50 % of the way"),
        (0.75, 0.05, 0, "Hardly forgotten: 19 % of the way"),
        (0.95, 0.05, 0, "Hardly forgotten: 0 % of the way"),
        # the intervals 0.50 ± 0.4 and 0.1 ± 0.05 overlap, but only for lack of evidence
        (0.50, 0.40, 1, "Partly forgotten: 50 % of the way"),
    ],
)
def test_the_level_depends_on_the_interval_of_the_oracle_and_on_the_change(
    left: float, width: float, level: int, start: str
) -> None:
    """On the way from 0.9 to 0.1, 0.24 is at 82 %, 0.5 at 50 % and 0.75 at 19 %."""
    found = of(answers(left, width))
    assert found.level == level
    assert found.headline.startswith(start)
    assert found.too_far == ()


def test_far_below_the_oracle_is_reported_as_too_far() -> None:
    oracle = answers(0.3)
    assert of(answers(0.21), oracle=oracle).headline.startswith("Forgotten: no measurable difference")
    found = of(answers(0.19), oracle=oracle)
    assert found.headline.startswith("Forgotten further than in the oracle")
    assert found.too_far == ("forget",)
    assert "This goes further than the oracle" in line(found, "forget")


def test_an_untouched_model_is_never_called_forgotten() -> None:
    """0.19 ± 0.05 overlaps the oracle's 0.1 ± 0.05, so target and oracle do not differ; 0.21 ± 0.05 does not overlap."""
    found = of(answers(0.19), target=answers(0.19))
    assert found.level is None
    assert found.headline.startswith("Not judged: the target and the oracle do not differ measurably")
    assert "this figure cannot show forgetting" in line(found, "forget")
    assert of(answers(0.21), target=answers(0.21)).level == 0


def test_a_target_beyond_the_oracle_cannot_show_forgetting() -> None:
    assert of(answers(0.1), target=answers(0.1), oracle=answers(0.5)).level is None


def test_the_least_forgotten_main_figure_decides() -> None:
    def both(probability: float, rouge: float) -> Result:
        return result({"probability": entry(probability), "rougeL_recall": entry(rouge)})

    assert of(both(0.1, 0.1), both(0.9, 0.9), both(0.1, 0.1)).level == 3
    assert of(both(0.1, 0.5), both(0.9, 0.9), both(0.1, 0.1)).level == 1


def test_a_trace_in_another_figure_prevents_the_verdict_forgotten() -> None:
    def with_attack(probability: float, auc: float) -> Result:
        return answers(probability, attacks={"auc": {"min_k": entry(auc)}})

    target, oracle = with_attack(0.9, 0.9), with_attack(0.1, 0.5)
    assert of(with_attack(0.1, 0.55), target, oracle).level == 3
    found = of(with_attack(0.1, 0.7), target, oracle)
    assert found.level == 2
    assert "Traces remain: min_k attack." in found.headline


def test_the_direction_comes_from_the_metric() -> None:
    """The truth ratio of a forgotten fact is high, so a value below the oracle's means more is left."""

    def ratio(value: float) -> Result:
        return result({"truth_ratio": entry(value, forgotten="high")})

    assert "More is left than in the oracle. 0 % of the way" in line(of(ratio(0.2), ratio(0.2), ratio(0.8)), "forget")
    assert "This goes further" in line(of(ratio(0.95), ratio(0.2), ratio(0.8)), "forget")


def test_a_whole_sentence() -> None:
    assert line(of(answers(0.5)), "forget") == (
        "forget: probability of the right answer is 0.500 [0.450, 0.550] (before unlearning 0.900 [0.850, 0.950], "
        "oracle 0.100 [0.050, 0.150]). More is left than in the oracle. 50 % of the way from the target to the oracle."
    )


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3))
def test_sides_follow_the_numbers_and_are_symmetric(own: float, other: float, width: float) -> None:
    def said(one: float, two: float) -> str:
        return line(of(answers(one, width), None, answers(two, width)), "forget")

    first, second = said(own, other), said(other, own)
    if "More is left" in first:
        assert own > other
        assert "This goes further" in second
    elif "This goes further" in first:
        assert own < other
        assert "More is left" in second
    else:
        assert abs(own - other) <= 2 * width + 1e-12
        assert "No measurable difference" in second


def test_share_of_the_change_made_by_a_sham() -> None:
    """A sham at 0.75 made (0.9 − 0.75) / (0.9 − 0.3) = 25 % of the change; without a change there is no share."""
    assert "made 25 % of this change" in line(of(answers(0.3), sham=answers(0.75)), "forget")
    assert "The sham run has 0.800." in line(of(answers(0.9), sham=answers(0.8)), "forget")


# Missing controls, scores and intervals.


def test_without_an_oracle_forgetting_is_not_judged() -> None:
    found = of(answers(0.01), oracle=None)
    assert found.level is None
    assert found.headline.startswith("Not judged: no results of the oracle")
    assert found.notes == ["There is no oracle, so only the change is shown, not whether it is large enough."]
    told = line(found, "forget")
    assert told == (
        "forget: probability of the right answer is 0.010 [-0.040, 0.060] (before unlearning 0.900 [0.850, 0.950])."
    )
    assert line(of(answers(0.85), oracle=None), "forget").endswith("No measurable change.")


def test_without_a_target_the_share_is_unknown() -> None:
    found = of(answers(0.1), target=None)
    assert found.level is None
    assert found.headline.startswith("Not judged: no results of the target")
    assert "No measurable difference from the oracle." in line(found, "forget")
    assert judge(answers(0.1)).headline.startswith("Not judged: no results of the target or the oracle")


def test_missing_scores_and_missing_intervals() -> None:
    assert line(of(result({"probability": entry(None, n_nan=5)})), "forget").endswith("could not be scored.")
    assert of(answers(0.5), None, result({"probability": entry(None)})).findings == []
    assert line(of(answers(0.5, None)), "forget").endswith("There is no interval, so the values are compared directly.")


def test_results_on_different_sets_are_not_compared() -> None:
    other = answers(0.1)
    other["sets"]["forget"]["digest"] = "of other rows"
    found = of(answers(0.1), oracle=other)
    assert found.level is None
    assert "The oracle was not measured on the same forget set" in found.notes[0]


def test_controls_in_the_result_are_used_unless_others_are_given() -> None:
    """They have no settings, since the suite already compared them."""
    own = {
        **answers(0.12),
        "settings": {"encoding": {"max_length": 8}},
        "controls": {"target": TARGET, "oracle": ORACLE},
    }
    assert judge(own).level == 3
    assert judge(own, {"oracle": {**answers(0.02, 0.01), "settings": own["settings"]}}).level == 2


# Retained knowledge.


def kept(own: float, width: float | None, before: float = 0.8, metric: str = "probability") -> Verdict:
    forget = {"probability": entry(0.1)}
    target = result({"probability": entry(0.9)}, {metric: keep(before, width)})
    return of(result(forget, {metric: keep(own, width)}), target)


@pytest.mark.parametrize(
    ("own", "width", "harmed", "meaning", "headline"),
    [
        (0.48, 0.05, ("retain",), "Harmed: 40 % worse than before unlearning.", "Harmed: retain."),
        (0.48, 0.20, (), "A loss of 40 % is possible, but there are too few", "Possibly harmed, but too few examples"),
        (0.77, 0.001, ("retain",), "Slightly harmed: 4 % worse than before unlearning.", "Slightly harmed: retain."),
        (0.77, 0.05, (), "No measurable loss.", "No harm to other knowledge was found."),
        (0.95, 0.05, (), "Better than before unlearning.", "No harm to other knowledge was found."),
        (0.48, None, ("retain",), "Harmed: 40 %", "Harmed: retain."),
        (0.79, None, (), "No measurable loss.", "No harm to other knowledge was found."),
    ],
)
def test_harm_is_a_significant_loss(
    own: float, width: float | None, harmed: tuple[str, ...], meaning: str, headline: str
) -> None:
    found = kept(own, width)
    assert found.harmed == harmed
    assert meaning in line(found, "retain")
    assert headline in found.headline


def test_pairs_show_a_loss_that_single_intervals_hide() -> None:
    """Every example loses 0.1 of about 0.8, which is 12.5 %; the paired interval has zero width."""

    def run(shift: float) -> Result:
        found = result({"probability": entry(0.1)}, {"probability": keep(0.8 + shift, 0.2)})
        found["sets"]["retain"]["examples"] = {f"row{i}": {"probability": 0.6 + 0.1 * i + shift} for i in range(5)}
        return found

    found = of(run(-0.1), run(0.0))
    assert found.harmed == ("retain",)
    assert "change -0.100 [-0.100, -0.100]). Harmed: 1" in line(found, "retain")
    # a loss of 2.5 % is below the threshold, even if it is certain
    assert of(run(-0.02), run(0.0)).harmed == ()


def test_retained_sets_are_compared_with_the_target_before_the_oracle() -> None:
    own, other = result(retain={"probability": keep(0.5)}), result(retain={"probability": keep(0.2)})
    assert "worse than before unlearning" in line(of(own, result(retain={"probability": keep(0.9)}), other), "retain")
    assert "Better than the oracle." in line(of(own, None, other), "retain")


def test_lower_can_be_better() -> None:
    assert kept(0.5, 0.05, before=0.1, metric="collapse").harmed == ("retain",)
    assert kept(0.1, 0.05, before=0.5, metric="collapse").harmed == ()
    assert kept(0.8, 0.05, before=0.3, metric="truth_ratio_arithmetic").harmed == ("retain",)

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


# Sections, tests and collapse.


def test_complete_results() -> None:
    def whole(auc: float, leak: float, utility: float, perplexity: float) -> Result:
        return result(
            attacks={"auc": {"min_k": entry(auc)}},
            leak={"forget": {"at": {"8": entry(leak)}}},
            model_utility={"arithmetic": entry(utility)},
            perplexity=entry(perplexity, 1.0),
            capability={"task": "quiz", "acc": entry(0.5)},
        )

    found = of(whole(0.2, 0.6, 0.3, 40), None, whole(0.5, 0.1, 0.6, 20))
    assert "score unusually low" in line(found, "min_k attack's AUC")
    assert "Repeated sampling reveals the answer more often" in line(found, "forget: leak@8")
    assert "perplexity of ordinary text is 40.0 [39.0, 41.0] (oracle 20.0" in line(found, "perplexity")
    assert "No measurable loss." in line(found, "quiz accuracy")
    assert found.harmed == ("model utility", "perplexity")
    assert [one.split(" is ")[0] for one in found.lines[1:]] == [
        "min_k attack's AUC",
        "forget: leak@8",
        "model utility (arithmetic)",
        "perplexity of ordinary text",
        "quiz accuracy",
    ]


def test_collapse_is_not_reported_as_forgetting() -> None:
    def broken(collapse: float, probability: float) -> Result:
        return result({"collapse": keep(collapse), "probability": entry(probability)})

    found = of(broken(0.9, 0.1), broken(0.0, 0.9), broken(0.0, 0.1))
    assert found.level is None
    assert found.headline.startswith("Collapsed: most answers of a set are empty or repeat themselves.")
    assert found.notes[0].startswith(
        "forget: 90 % of the answers are empty or repeat themselves. The model has collapsed"
    )
    assert "that is damage, not forgetting" in line(found, "forget: collapse")
    assert of(broken(0.5, 0.1), broken(0.0, 0.9), broken(0.0, 0.1)).level == 3


@pytest.mark.parametrize(
    ("value", "width", "words", "level"),
    [
        (-80.0, 10.0, "recognised as training data more easily", 2),
        (60.0, 10.0, "they are forgotten too far.", 3),
        (15.0, 20.0, "No measurable difference from the oracle.", 3),
        (5215.0, 10.0, "they are forgotten too far. Note: above 100.", 3),
    ],
)
def test_privleak(value: float, width: float, words: str, level: int) -> None:
    note = "above 100" if value > 100 else ""
    found = of(answers(0.1, privleak=entry(value, width, note=note)))
    told = line(found, "PrivLeak")
    assert told.startswith(f"PrivLeak is {value:.1f} [")
    assert told.endswith(words) or words in told
    assert found.level == level
    assert of(result(privleak=entry(None))).findings == []


def test_forget_quality_is_quoted_and_notes_if_the_target_passes_too() -> None:
    def tested(pvalue: float, direction: str = "lower", told: str = "as the test says") -> Result:
        test = {"verdict": told, "pvalue": pvalue, "direction": direction}
        return answers(0.1, forget_quality={"forget": {"geometric": test}})

    start = "Forget quality of forget (geometric truth ratio): as the test says."
    assert line(of(tested(0.6)), "Forget") == start
    assert line(of(tested(0.6), {**tested(0.07), **{"sets": TARGET["sets"]}}), "Forget") == (
        f"{start} The target passes this test too (p = 0.07), so it cannot show forgetting."
    )
    assert line(of(tested(0.6), {**tested(0.04), **{"sets": TARGET["sets"]}}), "Forget") == start
    assert (of(tested(0.6)).level, of(tested(0.04)).level, of(tested(0.04, "higher")).level) == (3, 2, 3)


def test_the_lines_of_a_suite_come_from_the_verdict() -> None:
    assert verdict(answers(0.5), target=TARGET, oracle=ORACLE) == of(answers(0.5)).lines


def test_it_needs_no_torch() -> None:
    code = "import sys, llm_forget.evaluation.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
