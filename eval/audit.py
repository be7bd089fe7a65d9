"""Audit a forgotten model: `accelerate launch eval/audit.py RUN [--quick] [--oracle RUN] …`.

`--help` lists the options, those of `llm-forget audit`. One process: run it without --multi_gpu.
"""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.main import app


def main(argv: list[str]) -> None:
    """Run ``llm-forget audit`` with the arguments of this script."""
    app(["audit", *argv], prog_name=sys.argv[0], standalone_mode=False)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
