"""Text from outside is shown character by character: no escape sequence, markup or change of direction takes effect."""

from __future__ import annotations

import ast
import io
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

import llm_forget
from llm_forget.cli.console import print_table
from llm_forget.cli.entry import run_entry
from llm_forget.utils.terminal import clean, echo, json_text, plain, say

ODD = {
    "\x1b[31mred\x1b[0m": "\\x1b[31mred\\x1b[0m",
    "bell\x07 back\x08 return\r": "bell\\x07 back\\x08 return\\x0d",
    "\x9b31m": "\\x9b31m",  # CSI as one byte
    "a\u202egnp.exe": "a\\u202egnp.exe",  # right-to-left override
    "\u2066x\u2069": "\\u2066x\\u2069",
    "\U000e0041": "\\U000e0041",  # a tag character, invisible
    os.fsdecode(b"caf\xe9"): "caf\\xe9",
    "\ud83d": "\\ud83d",
    "[red]x[/red] [/nothing] [link=http://x]": "[red]x[/red] [/nothing] [link=http://x]",
    "größer 中文 עברית 👩\u200d🚒": "größer 中文 עברית 👩\u200d🚒",
}


@pytest.mark.parametrize(("given", "shown"), ODD.items())
def test_odd_text_is_shown_as_it_is(given: str, shown: str) -> None:
    assert clean(given) == shown
    for colors in (None, "truecolor"):
        stream = io.StringIO()
        console = Console(file=stream, color_system=colors, force_terminal=False, width=200)
        say(console, given)
        console.print(plain(given), highlight=False)
        assert stream.getvalue() == f"{shown}\n{shown}\n"


def test_line_breaks_stay_in_a_message_and_not_in_a_name() -> None:
    assert clean("a\nb\tc") == "a\nb\tc"
    assert clean("a\nb\tc", lines=False) == "a\\nb\\tc"


@given(st.text(max_size=20))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_any_text_can_be_encoded_and_has_no_control_character(text: str) -> None:
    shown = clean(text)
    shown.encode("utf-8")
    assert clean(shown) == shown
    assert not {"\x1b", "\r", "\x9b", "\u202e"} & set(shown)


@pytest.mark.parametrize("value", [ODD, list(ODD), {"a": [1, 0.5, None, True, {}, []]}, "\x7f", "", 'a "b" \\ \n'])
def test_json_for_the_terminal_has_the_same_value(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert clean(text) == text


def test_a_stream_of_few_characters_gets_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    echo("ü\x1b", file=stream)
    stream.seek(0)
    assert stream.read() == "\\xfc\\x1b\n"


def test_a_table_shows_markup_and_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["[b]run[/b]", "x\ny"], [["[/nothing]", "\x1b[2J"]], console=Console(file=sys.stdout, width=80))
    shown = capsys.readouterr().out
    assert "[b]run[/b]" in shown
    assert "x\\ny" in shown
    assert "[/nothing]" in shown
    assert "\\x1b[2J" in shown


def _fixed(argument: ast.expr) -> bool:
    """Whether an argument of a print call is written in the source: its placeholders are constants of the module."""
    if isinstance(argument, ast.Constant):
        return True
    if isinstance(argument, ast.JoinedStr):
        names = [node.id for node in ast.walk(argument) if isinstance(node, ast.Name)]
        return all(name.isupper() for name in names)
    return not isinstance(argument, ast.BinOp)


def test_everything_is_printed_through_one_module() -> None:
    """A new ``print`` or ``console.print`` of composed text must use ``echo``, ``say`` or ``plain``."""
    root = Path(llm_forget.__file__).parent
    found = []
    for file in root.rglob("*.py"):
        if file.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            builtin = isinstance(node.func, ast.Name) and name == "print"
            composed = name == "print" and not all(map(_fixed, node.args))
            if composed or (builtin and not (node.args and isinstance(node.args[0], ast.Constant))):
                found.append(f"{file.relative_to(root)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    ("label", "lines"), [("note", ["note seven words are too", "many"]), ("", ["seven words are too many"])]
)
def test_a_terminal_breaks_a_note_between_words_and_leaves_a_command_whole(label: str, lines: list[str]) -> None:
    stream = io.StringIO()
    say(Console(file=stream, width=24, force_terminal=True, no_color=True), "seven words are too many", label=label)
    assert [line.strip() for line in stream.getvalue().splitlines()] == lines


def test_a_path_in_a_note_stays_whole() -> None:
    stream = io.StringIO()
    say(Console(file=stream, width=24, force_terminal=True, no_color=True), "see " + "a/" * 20, label="note")
    assert "a/" * 20 in stream.getvalue()


@pytest.mark.parametrize(("terminal", "start"), [(True, "\n"), (False, "")])
def test_an_interrupt_is_told_on_a_line_of_its_own(
    terminal: bool, start: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal prints ^C where the cursor is."""

    def interrupt(_: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with pytest.raises(SystemExit) as ended:
        run_entry(interrupt, [])
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"{start}interrupted\n"
