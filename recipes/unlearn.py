"""Unlearn: `accelerate launch recipes/unlearn.py --config recipes/demo/npo.yaml [--key.sub value …]`."""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.options import parse_command_line
from llm_forget.config import UnlearnRecipe


def main(argv: list[str]) -> None:
    """Check the recipe, then run it."""
    recipe = parse_command_line(UnlearnRecipe, argv)

    from llm_forget.train.unlearn import unlearn  # after the recipe is checked: importing torch takes seconds

    unlearn(recipe)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
