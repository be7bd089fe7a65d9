"""The verdict: the right side, the right words, and nothing said where nothing can be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_forget.evaluation.verdict import verdict

Entry = dict[str, Any]


def entry(value: float | None, width: float | None = 0.05, forgotten: str = "low", **more: Any) -> Entry:
    low, high = (None, None) if value is None or width is None else (value - width, value + width)
    return {"value": value, "low": low, "high": high, "n": 20, "n_nan": 0, "forgotten": forgotten} | more


def result(
    forget: dict[str, Entry] | None = None, retain: dict[str, Entry] | None = None, **more: Any
) -> dict[str, Any]:
    sets = {"forget": {"forget": True, "metrics": forget or {}}, "retain": {"forget": False, "metrics": retain or {}}}
    return {"sets": sets, **more}


def one(own: Entry, oracle: Entry, **controls: Any) -> str:
    lines = verdict(
        result({"probability": own}),
        oracle=result({"probability": oracle}),
        **{role: result({"probability": found}) for role, found in controls.items()},
    )
    assert len(lines) == 1
    return lines[0]


def test_three_sides_of_the_oracle() -> None:
    above = one(entry(0.5), entry(0.1))
    assert above == (
        "forget probability 0.500 [0.450, 0.550] lies above the oracle's 0.100 [0.050, 0.150]: "
        "more of it is left than in a model that never saw it"
    )
    assert "lies below the oracle's 0.500" in one(entry(0.1), entry(0.5))
    assert "suppressed" in one(entry(0.1), entry(0.5))
    assert "is not told apart from the oracle's" in one(entry(0.1), entry(0.19))


def test_the_direction_is_the_metrics() -> None:
    """A truth ratio is high when it is forgotten: below the oracle is what leaks."""
    lines = verdict(
        result({"truth_ratio": entry(0.2, forgotten="high")}),
        oracle=result({"truth_ratio": entry(0.8, forgotten="high")}),
    )
    assert "lies below" in lines[0]
    assert "more of it is left" in lines[0]


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3))
def test_sides_are_those_of_the_numbers_and_mirror_each_other(own: float, other: float, width: float) -> None:
    first, second = one(entry(own, width), entry(other, width)), one(entry(other, width), entry(own, width))
    if "above" in first:
        assert own > other
        assert "below" in second
    elif "below" in first:
        assert own < other
        assert "above" in second
    else:
        assert abs(own - other) <= 2 * width + 1e-12
        assert "not told apart" in second


def test_how_far_it_has_come_and_what_a_sham_does() -> None:
    """From 0.9 to 0.3 of a way to 0.1 is 75 %; a sham at 0.75 made (0.9 − 0.75) / 0.6 = 25 % of that change."""
    line = one(entry(0.3), entry(0.1), target=entry(0.9), sham=entry(0.75))
    assert "; 75 % of the way from the target's 0.900" in line
    assert "the sham, which forgot other rows, made 25 % of that change" in line


def test_a_figure_in_which_target_and_oracle_agree_shows_nothing() -> None:
    assert "so this figure shows nothing" in one(entry(0.12), entry(0.1), target=entry(0.11))


def test_an_unmoved_model_has_no_change_to_share_out() -> None:
    assert "; the sham is at 0.800" in one(entry(0.9), entry(0.1), target=entry(0.9), sham=entry(0.8))


def test_without_an_oracle_nothing_is_called_enough() -> None:
    lines = verdict(result({"probability": entry(0.1)}), target=result({"probability": entry(0.9)}))
    assert lines[0].startswith("no oracle: how low is low enough cannot be said")
    assert lines[1] == "forget probability 0.100 [0.050, 0.150], the target's 0.900"
    assert len(verdict(result({"probability": entry(0.1)}))) == 1


def test_what_is_kept_is_compared_with_the_target() -> None:
    def line(own: float, label: str = "probability") -> str:
        (found,) = verdict(
            result(retain={label: entry(own, forgotten="none")}),
            oracle=result(retain={label: entry(0.2, forgotten="none")}),
            target=result(retain={label: entry(0.9, forgotten="none")}),
        )
        return found

    assert "lies below the target's 0.900" in line(0.5)
    assert line(0.5).endswith(": damaged")
    assert "is not told apart from the target's" in line(0.88)
    assert line(0.99 + 0.1).endswith(": kept at least as well")
    assert line(1.2, "kl_to_target").endswith(": damaged")


def test_whole_results() -> None:
    def whole(auc: float, leak: float, utility: float, perplexity: float) -> dict[str, Any]:
        return result(
            attacks={"auc": {"min_k": entry(auc)}},
            leak={"forget": {"at": {"8": entry(leak)}}},
            model_utility={"arithmetic": entry(utility)},
            perplexity=entry(perplexity, 1.0),
            kl_to_target=entry(0.4),
            capability={"task": "quiz", "acc": entry(0.5)},
        )

    lines = verdict(whole(0.2, 0.6, 0.3, 40), oracle=whole(0.5, 0.1, 0.6, 20))
    by_name = {line.split(" 0.")[0].split(" 40")[0]: line for line in lines}
    assert "stand out the other way" in by_name["min_k attack's AUC"]
    assert "more of it is left" in by_name["forget leak@8"]
    assert by_name["model utility (arithmetic)"].endswith("damaged")
    assert by_name["perplexity"].endswith("damaged")
    assert "perplexity 40.0 [39.0, 41.0] lies above the oracle's 20.0" in by_name["perplexity"]
    assert "not told apart" in by_name["quiz accuracy"]
    # what must be forgotten comes first
    assert [("AUC" in line or "leak@" in line) for line in lines] == [True, True, False, False, False, False]


def test_collapse_is_not_called_forgetting() -> None:
    """Both the comparison and, whatever it is compared with, the warning."""
    broken = result({"collapse": entry(0.9, forgotten="none"), "probability": entry(0.0)})
    lines = verdict(broken, oracle=result({"collapse": entry(0.0, forgotten="none"), "probability": entry(0.2)}))
    assert any("damage, not forgetting" in line for line in lines)
    assert lines[-1].startswith("forget: 90 % of the answers are empty or loop; the model has collapsed")
    assert not any("collapsed" in line for line in verdict(result({"collapse": entry(0.5)})))


@pytest.mark.parametrize(
    ("value", "width", "words"),
    [
        (-80.0, 10.0, "members stand out as before"),
        (60.0, 10.0, "overdone"),
        (15.0, 20.0, "not told apart from the oracle"),
        (5215.0, 10.0, "overdone (above 100)"),
    ],
)
def test_privleak(value: float, width: float, words: str) -> None:
    note = "above 100" if value > 100 else ""
    lines = verdict(result(privleak=entry(value, width, note=note)), oracle=result())
    assert lines[0].startswith(f"PrivLeak {value:.1f} [")
    assert lines[0].endswith(words)
    assert verdict(result(privleak=entry(None)), oracle=result()) == []


def test_what_was_not_scored_and_what_has_no_interval() -> None:
    assert verdict(result({"probability": entry(None, n_nan=5)}), oracle=result({"probability": entry(0.5)})) == [
        "forget probability: not scored, so nothing can be said"
    ]
    assert verdict(result({"probability": entry(0.5)}), oracle=result({"probability": entry(None)})) == []
    assert one(entry(0.5, None), entry(0.1, None)).endswith("(no interval)")


def test_forget_quality_is_repeated() -> None:
    tests = {"forget": {"geometric": {"verdict": "not told apart from the oracle (p = 1, n = 5)"}}}
    assert verdict(result(forget_quality=tests), oracle=result()) == [
        "forget quality of forget (geometric truth ratio): not told apart from the oracle (p = 1, n = 5)"
    ]
