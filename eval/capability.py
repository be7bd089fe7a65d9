"""Evaluate general ability with lm-eval: `accelerate launch eval/capability.py --config my_eval.yaml [--key.sub value …]`.

`--help` lists the fields of the configuration, a CapabilityRecipe (llm_forget/evaluation/recipe.py).
"""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.run import capability

if __name__ == "__main__":
    run_entry(capability, sys.argv[1:])
