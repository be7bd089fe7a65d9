"""Test the progress of an evaluation: bars with remaining time in a terminal, one line per part in a log, or nothing."""

from __future__ import annotations

import io

from rich.console import Console

from llm_forget.evaluation.passes.meter import Meter


def shown(terminal: bool) -> tuple[str, Meter]:
    stream = io.StringIO()
    meter = Meter(Console(file=stream, force_terminal=terminal, width=100), processes=2)
    with meter.part("forget"), meter.bar("answers scored", 9) as progress:
        progress(3)
    return stream.getvalue(), meter


def test_a_terminal_shows_a_bar_for_the_share_of_this_process() -> None:
    text, meter = shown(terminal=True)
    assert "forget: answers scored" in text
    assert "3/5" in text, "of 9 in two processes"
    assert "<" in text
    assert list(meter.seconds) == ["forget"]


def test_a_log_has_one_line_per_part() -> None:
    assert shown(terminal=False)[0] == "measuring forget ...\n"


def test_without_a_console_only_the_time_is_measured() -> None:
    meter = Meter()
    with meter.part("retain"), meter.bar("x", 1) as progress:
        progress(1)
    assert meter.seconds["retain"] >= 0
