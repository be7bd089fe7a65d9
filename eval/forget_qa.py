"""Evaluate a model on a suite: `accelerate launch eval/forget_qa.py --config my_eval.yaml [--key.sub value …]`.

`--help` lists the fields of the configuration, an EvalRecipe (llm_forget/evaluation/recipe.py).
"""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.run import evaluate

if __name__ == "__main__":
    run_entry(evaluate, sys.argv[1:])
