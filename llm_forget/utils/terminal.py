"""Show text from outside (names, paths, answers, file contents) without letting it control the terminal.

A run's name, a path, a key of a foreign file or a model's answer may contain escape sequences, rich's markup, or characters
that reverse the direction of the text. ``clean`` makes all of them visible. Everything that is printed goes through it.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
import unicodedata
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Format characters (category Cf) that write words in some scripts and change no direction.
_HARMLESS = frozenset("\u00ad\u200c\u200d\u2060")
# Lone surrogates U+DC80 to U+DCFF are the bytes of a file name that is not UTF-8.
_BYTES = range(0xDC80, 0xDD00)
_PLAIN = re.compile(r"[ -~]*")  # printable ASCII, which most texts are


def clean(text: object, *, lines: bool = True) -> str:
    """A text whose control characters are written as escapes: ESC becomes ``\\x1b``.

    Args:
        text: any value; converted with ``str``.
        lines: whether line breaks and tabs stay. Use False for a name in the middle of a line.
    """
    given = str(text)
    if _PLAIN.fullmatch(given):
        return given
    return "".join(_visible(one, lines) for one in given)


def _visible(one: str, lines: bool) -> str:
    code = ord(one)
    if one in "\n\t":
        return one if lines else {"\n": "\\n", "\t": "\\t"}[one]
    if code in _BYTES:
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(one) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or one in _HARMLESS:
        return one
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain(text: object, style: str = "") -> Text:
    """A text for rich that shows exactly the characters of ``clean``: no markup, no emoji codes."""
    from rich.text import Text

    return Text(clean(text), style=style)


def say(console: Console, text: object, *, label: str = "", label_style: str = "yellow") -> None:
    """Print a line of text from outside on a rich console. In a terminal, a line with a label is broken between words.

    Args:
        console: where to print.
        text: the text.
        label: a word of ours before it, in color.
        label_style: the label's style.
    """
    from rich.text import Text

    shown = clean(text)
    if label:
        shown = f"{label} {shown}"
        if console.is_terminal:  # lines without a label may be commands, which people copy
            shown = wrapped(shown, console.width)
    line = Text(shown)
    line.stylize(label_style, 0, len(label))
    console.print(line, highlight=False, soft_wrap=True)


def wrapped(text: str, width: int) -> str:
    """The text in lines of this width, broken between words. Paths and commands without spaces stay whole."""
    lines = [textwrap.wrap(one, width, break_long_words=False, break_on_hyphens=False) for one in text.split("\n")]
    return "\n".join("\n".join(one) for one in lines)


def echo(text: object = "", *, file: TextIO | None = None) -> None:
    """Print text from outside; characters that the stream cannot encode become escapes too.

    Args:
        text: the text.
        file: the stream; standard output by default.
    """
    stream = sys.stdout if file is None else file
    shown = clean(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def json_text(value: Any) -> str:
    """JSON for the terminal: readable in any script, with control characters and lone surrogates as JSON's own escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text if text.isascii() and "\x7f" not in text else "".join(map(_json_escape, text))


def _json_escape(one: str) -> str:
    return one if one == "\n" or _visible(one, lines=False) == one else json.dumps(one)[1:-1]
