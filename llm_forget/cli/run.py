"""Launch functions: each builds a recipe from command-line arguments, checks it and runs it.

The scripts in ``recipes/`` and ``eval/`` call these functions, and so do the commands ``llm-forget unlearn``, ``finetune`` and
``evaluate``. Importing torch takes seconds, so it is imported only once the recipe is known to be valid.
"""

from __future__ import annotations

from llm_forget.cli.options import parse_command_line
from llm_forget.utils.quick_imports import importing


def unlearn(argv: list[str]) -> None:
    """Run an unlearning recipe.

    Raises:
        SystemExit: with status 1 if the run has row targets and did not reach them within its floors.
    """
    from llm_forget.config import UnlearnRecipe

    recipe = parse_command_line(UnlearnRecipe, argv)

    with importing():
        from llm_forget.train.unlearn import unlearn

    record = unlearn(recipe)
    # measured row by row: a recipe without a method gets row targets that it does not name
    if record.reached is False and record.after.match is not None:
        raise SystemExit(1)


def finetune(argv: list[str]) -> None:
    """Run a fine-tuning recipe."""
    from llm_forget.config import FinetuneRecipe

    recipe = parse_command_line(FinetuneRecipe, argv)

    with importing():
        from llm_forget.train.finetune import finetune

    finetune(recipe)


def evaluate(argv: list[str]) -> None:
    """Evaluate a model on a suite."""
    from llm_forget.evaluation.recipe import EvalRecipe

    recipe = parse_command_line(EvalRecipe, argv)

    with importing():
        from rich.console import Console

        from llm_forget.evaluation.evaluate import evaluate, show

    show(evaluate(recipe, console=Console(stderr=True)), recipe.output_dir)


def capability(argv: list[str]) -> None:
    """Evaluate general ability with lm-eval."""
    from llm_forget.evaluation.recipe import CapabilityRecipe

    recipe = parse_command_line(CapabilityRecipe, argv)

    with importing():
        from llm_forget.evaluation.evaluate import evaluate_capability, show

    show(evaluate_capability(recipe), recipe.output_dir)
