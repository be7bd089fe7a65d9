"""Measure general ability with lm-eval: `accelerate launch eval/capability.py --config my_eval.yaml [--key.sub value …]`.

The configuration is a CapabilityRecipe (llm_forget/evaluation/recipe.py): model, output_dir, task, limit,
or benchmarks: {preset: quick}.
"""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.options import parse_command_line
from llm_forget.evaluation.recipe import CapabilityRecipe


def main(argv: list[str]) -> None:
    """Check the recipe, then run it."""
    recipe = parse_command_line(CapabilityRecipe, argv)

    from llm_forget.evaluation.evaluate import (
        evaluate_capability,
        show,
    )  # after the check: importing torch takes seconds

    show(evaluate_capability(recipe))


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
