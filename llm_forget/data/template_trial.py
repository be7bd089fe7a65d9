"""Try a chat template in a process of its own, before it renders the data: it must end, in little memory, with a short text.

A chat template comes with the model, so mostly from somebody else. Jinja's sandbox, in which transformers renders it, bounds
neither time nor memory, and a constant expression already runs when the template is compiled. This script renders chats of
different kinds and lengths; ``utils.bounded`` runs it under limits of the operating system.

It reads ``{"template": text, "tokens": {name: special token}}`` as JSON from standard input and writes ``{"problem": text}``,
where "" means none. What a template raises is none here: it is reported for the example that causes it. The script imports
nothing of the package, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SECONDS = 3  # of computing, for all chats
MEMORY = 1 << 29  # bytes
# Longest text: what a template may add to a chat, and how often it may repeat its turns.
_ADDED, _REPEATED = 50_000, 8
_LONG = "".join(f"Line {number}: some words, and a few more (or less).\n" for number in range(80))


def environment() -> Any:
    """The environment of transformers (5.24, ``utils/chat_template_utils.py``)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag that marks what the assistant says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    made.globals.update(raise_exception=refuse, strftime_now=lambda form: "01 Jan 2025")
    return made


def problem_with(template: str, tokens: dict[str, Any]) -> str:
    """What is wrong with a template; "" if nothing is."""
    try:
        made = environment().from_string(template)
    except MemoryError:
        return "it takes too much memory"
    except Exception:
        return ""
    for content in ("Hi", _LONG):
        turns = [{"role": role, "content": content} for role in ("system", "user", "assistant", "user", "assistant")]
        for chat in (turns[1:2], turns[1:3], turns[:4], turns):
            for generation in (False, True):
                try:
                    text = made.render(messages=chat, add_generation_prompt=generation, **tokens)
                except MemoryError:
                    return "it takes too much memory"
                except Exception:
                    continue
                if len(text) > _ADDED + _REPEATED * len(content) * len(chat):
                    return f"it makes a text of {len(text):,} characters from {len(chat)} turns of {len(content)}"
    return ""


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump({"problem": problem_with(request["template"], request["tokens"])}, sys.stdout)
