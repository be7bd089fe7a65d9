"""Evaluate a model on a suite: `accelerate launch eval/forget_qa.py --config my_eval.yaml [--key.sub value …]`.

The configuration is an EvalRecipe (llm_forget/evaluation/recipe.py): model, suite, output_dir, controls, data_dir, cache.
"""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.options import parse_command_line
from llm_forget.evaluation.recipe import EvalRecipe


def main(argv: list[str]) -> None:
    """Check the recipe, then run it."""
    recipe = parse_command_line(EvalRecipe, argv)

    from rich.console import Console

    from llm_forget.evaluation.evaluate import evaluate, show  # after the check: importing torch takes seconds

    show(evaluate(recipe, console=Console(stderr=True)))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
