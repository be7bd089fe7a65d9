"""`llm-forget chat`: ask the model before and after unlearning the same questions. Writes no file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_forget.cli.console import Json, print_json
from llm_forget.errors import UserError
from llm_forget.utils.terminal import plain

Answer = Callable[[str], tuple[str, str]]


def chat(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of an unlearning run")],
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", metavar="TEXT", help="a question; repeatable")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the model before unlearning, if it has moved since the run")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="longest answer, in tokens")] = 64,
    as_json: Json = False,
) -> None:
    """Show the answers before and after unlearning side by side.

    Without --question it reads questions from the terminal, one per line, and
    stops at an empty line. Answers are generated greedily and not stored.

    \b
    Examples:
      llm-forget chat runs/npo
      llm-forget chat runs/npo -q "Where does Ada live?" -q "What is snow?"
    """
    from rich.console import Console
    from rich.table import Table

    answer = load_both(run, base, max_new_tokens)
    console = Console()
    if as_json:
        rows = [
            dict(zip(("question", "before", "after"), (one, *answer(one)), strict=True)) for one in _asked(question)
        ]
        print_json(rows)
        return
    for one in _asked(question):
        before, after = answer(one)
        table = Table(title=plain(one), title_justify="left", expand=True)
        table.add_column("before", ratio=1, overflow="fold")
        table.add_column("after", ratio=1, overflow="fold")
        table.add_row(plain(before), plain(after))
        console.print(table)


def _asked(given: list[str] | None) -> Iterator[str]:
    if given:
        yield from given
        return
    prompt = "question (empty to end)> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def load_both(run: Path, base: Path | None, max_new_tokens: int) -> Answer:
    """Load both models of a run.

    If the run trained an adapter, one copy of the weights serves both: the adapter is disabled for the first answer.

    Args:
        run: folder of an unlearning run.
        base: the model before unlearning; None for the path in the run's recipe.
        max_new_tokens: longest answer.

    Returns:
        A function from a question to the answers before and after.

    Raises:
        UserError: the folder is no unlearning run, or its base model is missing.
    """
    from llm_forget.adapters.lora import load_adapter
    from llm_forget.config import ModelConfig
    from llm_forget.data.encode import EncodingConfig
    from llm_forget.model.adapted import attach_adapter
    from llm_forget.model.ask import ask
    from llm_forget.model.load import load_model
    from llm_forget.runs import load_run
    from llm_forget.utils.build import build

    found = load_run(run)
    if found.kind != "unlearn":
        raise UserError(
            f"{run} is not an unlearning run, so it has no before and after; give the folder of an unlearning run"
        )
    values = {**(found.recipe.get("model") or {}), **({"name": str(base)} if base else {})}
    config = build(ModelConfig, values, f"{run}, model")
    encoding = build(EncodingConfig, found.recipe.get("encoding") or {}, f"{run}, encoding")
    model, tokenizer = load_model(config)

    def say(one: Any, question: str) -> str:
        return ask(one, tokenizer, question, encoding, max_new_tokens=max_new_tokens)

    if (run / "adapter").is_dir():
        adapted = attach_adapter(model, load_adapter(run / "adapter")).eval()

        def both(question: str) -> tuple[str, str]:
            with adapted.disable_adapter():
                before = say(adapted, question)
            return before, say(adapted, question)

        return both
    after, _ = load_model(ModelConfig(name=str(run / "model"), dtype=config.dtype))
    return lambda question: (say(model, question), say(after, question))
