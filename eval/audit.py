"""Audit a forgotten model: `accelerate launch eval/audit.py RUN [--quick] [--oracle RUN] …`.

`--help` lists the options, those of `llm-forget audit`. One process: run it without --multi_gpu.
"""

from __future__ import annotations

import sys

from llm_forget.cli.audit import main
from llm_forget.cli.entry import run_entry

if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
