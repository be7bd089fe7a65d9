"""Fill in the templates of a task file, in a process of its own: no code of the file runs, and none can run for long.

A task file comes from somebody else, and lm-eval renders its templates without a sandbox. This script renders them first, with
Jinja's immutable sandbox and without globals beyond ``range``, ``dict`` and ``namespace``. The sandbox bounds neither time nor
memory, so ``utils.bounded`` runs it under limits of the operating system, in which it can write no file.

It reads ``{"templates": {field: template}, "rows": [row, …], "longest": n}`` as JSON from standard input and writes
``{"rows": [{field: text}, …]}``, or ``{"problem": …, "field": …, "row": …}`` for the first row that cannot be rendered. It
imports nothing of the package, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

SECONDS = 5  # of computing, for all rows
MEMORY = 1 << 30  # bytes
_MOST = 64 << 20  # characters of all rows together
_GLOBALS = ("range", "dict", "namespace")


def environment() -> Any:
    """lm-eval's settings (0.4.13, ``lm_eval/utils.py``) in a sandbox."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    made = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    made.globals = {name: made.globals[name] for name in _GLOBALS}
    del made.filters["attr"]  # reaches attributes by name, the way around older sandboxes
    made.filters["regex_replace"] = lambda text, pattern, repl, count=0: re.sub(pattern, repl, text, count=count)
    return made


def render(given: dict[str, Any]) -> dict[str, Any]:
    """Render every template with every row."""
    made, total = environment(), 0
    templates: dict[str, Any] = {}
    rows: list[dict[str, str]] = []
    number, field = 0, ""
    try:
        for field, source in given["templates"].items():
            templates[field] = made.from_string(source)
        for number, row in enumerate(given["rows"], start=1):
            rows.append({})
            for field, template in templates.items():
                text = rows[-1][field] = template.render(row)
                total += len(text)
                if len(text) > given["longest"] or total > _MOST:
                    return {
                        "problem": f"a text of more than {given['longest']} characters",
                        "field": field,
                        "row": number,
                    }
    except Exception as error:  # a template can raise anything; its message can quote the row, so only the type is told
        return {"problem": type(error).__name__, "field": field, "row": number}
    return {"rows": rows}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    json.dump(render(request), sys.stdout)
