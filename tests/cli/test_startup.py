"""What a command imports before it has something to do: help must come at once."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pandas", "pyarrow", "sklearn", "scipy"}
ALL_HELP = """
import contextlib, io, json, sys
import llm_forget
package = set(sys.modules)
import typer
from llm_forget.cli.main import app
top = set(sys.modules)
found = []

def show(command, path):
    shown = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        group.main([*path, "--help"], prog_name="llm-forget", standalone_mode=True)
    found.append((" ".join(path), bool(shown.getvalue())))
    for name, inner in getattr(command, "commands", {}).items():
        show(inner, [*path, name])

group = typer.main.get_command(app)
show(group, [])
print(json.dumps([sorted(package), sorted(top), sorted(sys.modules), found]))
"""


def test_no_help_imports_a_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", ALL_HELP], capture_output=True, text=True, check=True)
    package, top, after_all, found = json.loads(done.stdout)
    roots = {name.partition(".")[0] for name in after_all}
    assert not roots & HEAVY
    # a fifth of a second each, which the list of commands need not wait for
    assert not set(top) & {"pydantic", "yaml", "rich.console", "llm_forget.config"}
    assert not set(package) & {"typer", "llm_forget.config", "llm_forget.api"}
    shown = dict(found)
    assert {"", "unlearn", "evaluate", "forget", "keys new", "requests add"} <= set(shown)
    assert all(shown.values())
