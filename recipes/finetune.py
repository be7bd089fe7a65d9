"""Fine-tune: `accelerate launch recipes/finetune.py --config recipes/demo/target.yaml [--key.sub value …]`."""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.run import finetune

if __name__ == "__main__":
    run_entry(finetune, sys.argv[1:])
