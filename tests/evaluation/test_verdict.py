"""Test the verdict: each rule on both sides of its limit, on results made by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdict_examples import ORACLE, TARGET, Result, answers, entry, keep, line, of, result

from llm_forget.evaluation.verdict import judge, verdict

# Amount of forgetting.


@pytest.mark.parametrize(
    ("left", "width", "level", "start"),
    [
        (0.12, 0.02, 3, "As if never seen: in every forget metric that can tell, within a fifth of what was there."),
        (0.24, 0.02, 2, "17 % of what the target knew is left (forget: probability of the right answer)."),
        (0.50, 0.05, 1, "50 % of what the target knew is left"),
        (0.75, 0.05, 0, "81 % of what the target knew is left"),
        (0.90, 0.05, 0, "100 % of what the target knew is left"),
        # 17 % ± 27 %: neither nothing nor something
        (0.24, 0.25, None, "Too few rows to tell how much is left (forget; about 53 would do)."),
    ],
)
def test_the_headline_follows_the_equivalence_test(left: float, width: float, level: int | None, start: str) -> None:
    """On the way from 0.9 to 0.1, 0.24 is at 82 %, 0.5 at 50 % and 0.75 at 19 %."""
    found = of(answers(left, width))
    assert found.level == level
    assert found.headline.startswith(start)
    assert found.too_far == ()
    assert found.good == (level == 3)


def test_far_below_the_oracle_is_reported_as_overdone() -> None:
    oracle = answers(0.5, 0.02)
    assert of(answers(0.45, 0.01), oracle=oracle).level == 3
    found = of(answers(0.3, 0.02), oracle=oracle)
    assert found.headline.startswith(
        "Overdone: further than the oracle, which can itself reveal what was removed (forget)."
    )
    assert (found.too_far, found.level, found.good) == (("forget",), 2, False)
    assert "Overdone: 50 % beyond the oracle" in line(found, "forget")


def test_an_untouched_model_is_never_called_one_that_never_saw() -> None:
    """Where target and oracle cannot be told apart nothing is judged; where they can, 100 % is left."""
    found = of(answers(0.14), target=answers(0.14))
    assert found.level is None
    assert found.headline.startswith("Not judged: no forget metric can tell the target from the oracle on these rows.")
    assert "This metric cannot tell" in line(found, "forget")
    assert of(answers(0.19), target=answers(0.19)).headline.startswith("100 % of what the target knew is left")


def test_a_target_beyond_the_oracle_cannot_show_forgetting() -> None:
    found = of(answers(0.3), target=answers(0.3), oracle=answers(0.5))
    assert found.level is None
    assert "This metric cannot tell" in line(found, "forget")


def test_the_least_forgotten_figure_decides_main_or_not() -> None:
    def three(probability: float, rouge: float, extraction: float) -> Result:
        values = {"probability": probability, "rougeL_recall": rouge, "extraction_strength": extraction}
        return result({label: entry(value, 0.02) for label, value in values.items()})

    target, oracle = three(0.9, 0.9, 0.9), three(0.1, 0.1, 0.1)
    assert of(three(0.1, 0.1, 0.1), target, oracle).level == 3
    found = of(three(0.1, 0.5, 0.1), target, oracle)
    assert (found.level, found.headline[:56]) == (1, "50 % of what the target knew is left (forget: ROUGE-L ov")
    assert "(forget: extraction_strength)" in of(three(0.1, 0.1, 0.5), target, oracle).headline


@pytest.mark.parametrize(
    ("auc", "level", "said"),
    [
        (0.52, 3, "As if never seen"),
        (0.7, 1, "50 % of what the target knew is left (min_k attack's AUC)."),
        (0.2, 2, "Overdone: further than the oracle, which can itself reveal what was removed (min_k attack)."),
    ],
)
def test_a_membership_attack_decides_too(auc: float, level: int, said: str) -> None:
    def with_attack(probability: float, auc: float) -> Result:
        return answers(probability, 0.02, attacks={"auc": {"min_k": entry(auc, 0.01)}})

    found = of(with_attack(0.1, auc), with_attack(0.9, 0.9), with_attack(0.1, 0.5))
    assert found.level == level
    assert said in found.headline


def test_one_metric_with_too_few_rows_keeps_the_headline_open() -> None:
    def both(probability: float, rouge: float) -> Result:
        return result({"probability": entry(probability, 0.02), "rougeL_recall": entry(rouge, 0.2)})

    found = of(both(0.1, 0.15), both(0.9, 0.9), both(0.1, 0.1))
    assert found.level is None
    assert found.headline.startswith("Too few rows to tell how much is left (forget; about")
    assert "As if never seen, within a fifth" in line(found, "forget: probability")


def test_a_model_that_differs_where_target_and_oracle_do_not_leaves_a_trace() -> None:
    def both(probability: float, auc: float) -> Result:
        return answers(probability, 0.02, attacks={"auc": {"loss": entry(auc)}})

    found = of(both(0.1, 0.1), both(0.9, 0.5), both(0.1, 0.5))
    assert (found.level, found.too_far) == (2, ("loss attack",))
    assert of(both(0.1, 0.9), both(0.9, 0.5), both(0.1, 0.5)).headline.startswith("Traces remain: loss attack.")


def test_the_direction_comes_from_the_metric() -> None:
    """The truth ratio of a forgotten fact is high, so a value below the oracle's means more is left."""

    def ratio(value: float) -> Result:
        return result({"truth_ratio": entry(value, forgotten="high")})

    assert "100 % of what the target knew is left" in line(of(ratio(0.2), ratio(0.2), ratio(0.7)), "forget")
    assert "Overdone" in line(of(ratio(0.95), ratio(0.2), ratio(0.7)), "forget")


def test_scores_of_the_same_questions_are_paired() -> None:
    """The questions differ by ± 0.2, so the means alone show nothing; each question by itself lost everything."""

    def run(shift: float) -> Result:
        scores = [0.3 + 0.4 * (index % 2) + shift for index in range(20)]
        found = answers(sum(scores) / 20, 0.3)
        found["sets"]["forget"]["examples"] = {f"row{i}": {"probability": score} for i, score in enumerate(scores)}
        return found

    assert of(run(0.0), run(0.3), run(0.0)).level == 3
    assert of(run(0.15), run(0.3), run(0.0)).headline.startswith("50 % of what the target knew is left")


def test_attack_and_leak_are_paired_by_row() -> None:
    """The scores of members shift by 0, 1 and 2; the intervals of the AUCs are much too wide to tell."""
    draw = np.random.default_rng(0)
    members, others = draw.normal(size=(2, 60))

    def run(shift: float, counts: int) -> Result:
        sets = {
            name: {
                "forget": name == "forget",
                "metrics": {},
                "examples": {f"{name}{i}": {"attack_loss": float(one)} for i, one in enumerate(scores)},
            }
            for name, scores in (("forget", members + shift), ("holdout", others))
        }
        for i, row in enumerate(sets["forget"]["examples"].values()):
            row["leak_samples"] = counts if i % 2 else 0
        value = float((members[:, None] + shift > others[None, :]).mean())
        attacks = {"members": "forget", "nonmembers": "holdout", "auc": {"loss": entry(value, 0.4)}}
        leak = {"forget": {"at": {"1": entry(counts / 8, 0.4)}, "samples": 4}}
        return {"sets": sets, "attacks": attacks, "leak": leak}

    found = of(run(0.02, 0), run(2.0, 4), run(0.0, 0))
    assert "As if never seen" in line(found, "loss attack's AUC")
    assert "As if never seen" in line(found, "forget: leak@1")
    found = of(run(1.0, 2), run(2.0, 4), run(0.0, 0))
    assert "of what the target knew is left" in line(found, "loss attack's AUC")
    assert "50 % of what the target knew is left" in line(found, "forget: leak@1")


# What the target never knew.


@pytest.mark.parametrize(("before", "known"), [(0.001, False), (0.14, True)])
def test_what_the_target_never_knew_is_not_judged_as_forgotten(before: float, known: bool) -> None:
    """Without an oracle, by the probability of answers never seen; with one, by the oracle's."""
    found = of(answers(0.0, 0.001), target=answers(before, 0.01), oracle=None)
    assert found.headline.startswith("Not judged: no results of the oracle" if known else "Not known before:")
    assert found.level is None
    with_oracle = of(answers(0.0, 0.001), target=answers(before, 0.01), oracle=answers(0.001, 0.01))
    assert with_oracle.headline.startswith("Not known before:") is not known


def test_a_target_below_the_oracle_did_not_know() -> None:
    assert of(answers(0.1), target=answers(0.2), oracle=answers(0.3)).headline.startswith("Not known before:")


def test_a_whole_sentence() -> None:
    assert line(of(answers(0.5)), "forget") == (
        "forget: probability of the right answer is 0.500 [0.450, 0.550] (before unlearning 0.900 [0.850, 0.950], "
        "oracle 0.100 [0.050, 0.150]). 50 % of what the target knew is left [43 %, 61 %]."
    )


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3))
def test_differences_follow_the_numbers_and_are_symmetric(own: float, other: float, width: float) -> None:
    """Without a target, the intervals are compared."""

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
    assert line(of(answers(0.85), oracle=None), "forget").endswith(
        "No measurable difference from the model before unlearning."
    )


def test_without_a_target_the_share_is_unknown() -> None:
    found = of(answers(0.1), target=None)
    assert found.level is None
    assert found.headline.startswith("Not judged: no results of the target")
    assert "No measurable difference from the oracle." in line(found, "forget")
    assert judge(answers(0.1)).headline.startswith("Not judged: no results of the target or the oracle")


def test_missing_scores_and_missing_intervals() -> None:
    assert line(of(result({"probability": entry(None, n_nan=5)})), "forget").endswith("could not be scored.")
    assert of(answers(0.5), None, result({"probability": entry(None)})).findings == []
    assert line(of(answers(0.5, None)), "forget").endswith(
        "There is no interval, so it cannot be told how much is left."
    )


def test_results_on_different_sets_are_not_compared() -> None:
    other = answers(0.1)
    other["sets"]["forget"]["digest"] = "of other rows"
    found = of(answers(0.1), oracle=other)
    assert found.level is None
    assert "The oracle was not measured on the same forget set" in found.notes[0]


def test_controls_in_the_result_are_used_unless_others_are_given() -> None:
    """They have no settings, since the suite already compared them."""
    own = {
        **answers(0.12, 0.02),
        "settings": {"encoding": {"max_length": 8}},
        "controls": {"target": TARGET, "oracle": ORACLE},
    }
    assert judge(own).level == 3
    assert judge(own, {"oracle": {**answers(0.0, 0.01), "settings": own["settings"]}}).level != 3


# Retained knowledge.


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
    assert "Too few rows to tell whether it is kept" in line(found, "quiz accuracy")
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
    assert of(broken(0.5, 0.1), broken(0.0, 0.9), broken(0.0, 0.1)).headline.startswith("Collapsed") is False


@pytest.mark.parametrize(
    ("value", "width", "words", "level"),
    [
        (-80.0, 10.0, "recognised as training data more easily", 2),
        (60.0, 10.0, "they are forgotten too far.", 2),
        (15.0, 20.0, "No measurable difference from the oracle.", 3),
        (5215.0, 10.0, "they are forgotten too far. Note: above 100.", 2),
    ],
)
def test_privleak(value: float, width: float, words: str, level: int) -> None:
    note = "above 100" if value > 100 else ""
    found = of(answers(0.1, 0.02, privleak=entry(value, width, note=note)))
    told = line(found, "PrivLeak")
    assert told.startswith(f"PrivLeak is {value:.1f} [")
    assert told.endswith(words) or words in told
    assert found.level == level
    assert of(result(privleak=entry(None))).findings == []


def test_forget_quality_decides_by_the_paired_test() -> None:
    """The published p is shown, and the target's own next to it; the paired p decides."""

    def tested(pvalue: float, paired: float | None, direction: str = "lower") -> Result:
        test = {"verdict": "as the test says", "statistic": 0.2, "pvalue": pvalue, "direction": direction}
        return answers(0.1, 0.02, forget_quality={"forget": {"geometric": test | {"paired_pvalue": paired}}})

    start = "Forget quality of forget (geometric truth ratio): as the test says."
    target = {**tested(1e-9, 1e-12), "sets": TARGET["sets"]}
    assert line(of(tested(0.6, 0.5), target), "Forget") == (
        f"{start} The target's own: D = 0.20, p = 1e-09, paired p = 1e-12."
    )
    weak = {**tested(0.4, 0.07), "sets": TARGET["sets"]}
    assert line(of(tested(0.6, 0.5), weak), "Forget").endswith(
        "The target passes this test too, so it cannot show forgetting."
    )
    levels = [of(tested(0.6, p), target).level for p in (0.5, 0.04, None)]
    assert levels == [3, 2, 3]
    assert of(tested(0.6, 0.04), target).headline.startswith("Traces remain: forget quality.")
    assert of(tested(8e-7, None), target).level == 2
    assert of(tested(0.6, 0.04, "higher"), target).too_far == ("forget quality",)


def test_forget_quality_is_computed_from_the_truth_ratios_of_the_given_runs() -> None:
    """The model was evaluated without controls; its ratios are all 20 % below the oracle's."""

    def run(factor: float) -> Result:
        found = answers(0.1, 0.02)
        found["sets"]["forget"]["examples"] = {
            f"row{i}": {"truth_ratio_arithmetic": factor * (0.2 + i / 10)} for i in range(20)
        }
        return found

    told = line(of(run(0.8), {**run(0.1)}, run(1.0)), "Forget quality")
    assert "differs from the oracle (D = " in told
    assert "The target's own: D = " in told


def test_the_lines_of_a_suite_come_from_the_verdict() -> None:
    assert verdict(answers(0.5), target=TARGET, oracle=ORACLE) == of(answers(0.5)).lines


def test_it_needs_no_torch() -> None:
    code = "import sys, llm_forget.evaluation.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
