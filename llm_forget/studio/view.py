"""Small pieces of pages: escaped HTML, command lines, and what an action that fails says."""

from __future__ import annotations

import functools
import html
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from llm_forget.errors import UserError
from llm_forget.report.tables import Table
from llm_forget.utils.terminal import clean


def text(value: object) -> str:
    """Any text, safe inside HTML."""
    return html.escape(clean(str(value)))


def say(message: str, kind: str = "note") -> str:
    """A sentence for the user: a note, or an alert that screen readers read at once."""
    if not message:
        return ""
    role = "alert" if kind == "alert" else "status"
    lines = "<br>".join(map(text, message.splitlines()))
    return f'<div class="said {kind}" role="{role}">{lines}</div>'


def empty(message: str) -> str:
    """What stands where nothing is yet, and what to do about it."""
    return f'<p class="empty">{text(message)}</p>'


def listed(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows) + "</dl>"


def folded(title: str, lines: Sequence[str]) -> str:
    """Lines below a title that opens them; nothing without lines."""
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<details><summary>{text(title)} ({len(lines)})</summary><ul>{items}</ul></details>" if lines else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of cells that are HTML already; it scrolls sideways on a narrow screen."""
    top = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table><caption>{text(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def of_table(found: Table, cell: Callable[[int, int, str], str] = lambda row, column, one: one) -> str:
    """A table of a report. ``cell`` may wrap the HTML of the cell in a row and a column."""

    def shown(row: int, column: int) -> str:
        one = found.rows[row][column]
        return cell(row, column, f'<span class="cell {text(one.tone)}">{text(one.text)}</span>')

    rows = [[shown(row, column) for column in range(len(cells))] for row, cells in enumerate(found.rows)]
    note = f'<p class="hint">{text(found.note)}</p>' if found.note else ""
    return table(found.head, rows, found.caption) + note


def link(page: str, label: str) -> str:
    """A link to a page or a file of the studio, in a new tab."""
    return f'<a href="/page/{html.escape(page)}" target="_blank" rel="noopener">{text(label)}</a>'


def words(value: str = "", **more: Any) -> gr.HTML:
    """A component for the HTML of this module."""
    return gr.HTML(value, apply_default_css=False, elem_classes="words", **more)


def command_box() -> gr.Textbox:
    """Where the command line of a screen stands."""
    label = "The same on the command line"
    later = "It stands here after the first step on this screen."
    return gr.Textbox(
        label=label, placeholder=later, interactive=False, lines=2, buttons=["copy"], elem_classes="command"
    )


def act(
    event: Any, run: Callable[..., Any], inputs: Any = None, outputs: Any = (), message: Any = None, slow: bool = False
) -> Any:
    """Bind an action to an event. What goes wrong is said in ``message``, in words and without text of the data.

    Args:
        event: such as ``button.click``.
        run: returns one value for each output, or one value if there is one output.
        inputs: its arguments.
        outputs: what it changes.
        message: the HTML that says what went wrong; it is cleared otherwise.
        slow: show that it works on it.
    """
    many = [*outputs, *([] if message is None else [message])]

    @functools.wraps(run)
    def guarded(*values: Any) -> Any:
        try:
            found = run(*values)
        except UserError as error:
            told = str(error)
        except Exception as error:  # its text could quote a row
            told = f"{type(error).__name__} inside the studio. The terminal names the place; the command line does the same."
            place = traceback.extract_tb(error.__traceback__)[-1]
            sys.stderr.write(f"studio: {type(error).__name__} in {place.filename}:{place.lineno}\n")
        else:
            values = tuple(found) if len(outputs) != 1 else (found,)
            found = [*values, *([] if message is None else [""])]
            return found if len(found) != 1 else found[0]
        if message is None:
            raise gr.Error(told, print_exception=False)
        return [*([gr.skip()] * len(outputs)), say(told, "alert")]

    progress = "minimal" if slow else "hidden"
    return event(guarded, inputs, many, api_visibility="private", show_progress=progress)
