"""Fine-tune: `accelerate launch recipes/finetune.py --config recipes/demo/target.yaml [--key.sub value …]`."""

from __future__ import annotations

import sys

from llm_forget.cli.entry import run_entry
from llm_forget.cli.options import parse_command_line
from llm_forget.config import FinetuneRecipe


def main(argv: list[str]) -> None:
    """Check the recipe, then run it."""
    recipe = parse_command_line(FinetuneRecipe, argv)

    from llm_forget.train.finetune import finetune  # after the recipe is checked: importing torch takes seconds

    finetune(recipe)


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
