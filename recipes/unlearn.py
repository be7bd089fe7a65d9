"""Unlearn: `accelerate launch recipes/unlearn.py --config recipes/demo/npo.yaml [--key.sub value …]`."""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.run import unlearn

if __name__ == "__main__":
    run_entry(unlearn, sys.argv[1:])
