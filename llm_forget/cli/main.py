"""The `llm-forget` command: one thin function per subcommand."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_forget.cli import adapters as adapter_commands
from llm_forget.cli import run
from llm_forget.cli.chat import chat
from llm_forget.cli.compare import compare
from llm_forget.cli.console import Json, print_json, run_command
from llm_forget.cli.entry import quiet_libraries
from llm_forget.cli.methods import methods
from llm_forget.cli.plan import plan
from llm_forget.cli.report import report
from llm_forget.cli.seeds import seeds

app = typer.Typer(
    name="llm-forget",
    help="Machine unlearning for language models: unlearn, evaluate, and ship LoRA adapters. "
    "--debug shows tracebacks of errors.",
    epilog="Exit status: 0 success; 1 a check failed (doctor); 2 invalid input; 3 internal error; 130 interrupted. "
    "Tab completion: llm-forget --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that come with the package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
_ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}
# --help is passed on: the recipe's own help lists every field
_RECIPE_OPTIONS = {**_ANY_OPTION, "help_option_names": []}


@app.command(context_settings=_RECIPE_OPTIONS)
def unlearn(context: typer.Context) -> None:
    """Run an unlearning recipe in one process.

    Options: --config FILE [--key.sub VALUE …]; --help lists every field.
    """
    run.unlearn(context.args)


@app.command(context_settings=_RECIPE_OPTIONS)
def finetune(context: typer.Context) -> None:
    """Fine-tune a target or an oracle in one process.

    Options: --config FILE [--key.sub VALUE …]; --help lists every field.
    """
    run.finetune(context.args)


@app.command(context_settings=_RECIPE_OPTIONS)
def evaluate(context: typer.Context) -> None:
    """Evaluate a model on a suite in one process.

    Options: --config FILE [--key.sub VALUE …]; --help lists every field.
    """
    run.evaluate(context.args)


app.command(context_settings=_ANY_OPTION)(plan)
app.command()(methods)
app.command()(compare)
app.command()(report)
app.command()(seeds)
app.command()(chat)


@app.command()
def demo(
    data_only: Annotated[
        bool, typer.Option("--data-only", help="only write the invented people that recipes/demo uses")
    ] = False,
) -> None:
    """Run the demo in ./runs/demo: train, unlearn with three methods, evaluate.

    Takes about 15 minutes on two CPU cores.

    Example:
      llm-forget demo
    """
    from llm_forget.demo.story import demo_environment, make_people, run_demo

    demo_environment()
    start = make_people if data_only else run_demo
    start(Console(width=None if sys.stdout.isatty() else 100))  # wide enough for the table in a log file


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes that come with the package, each with its title.

    Example:
      llm-forget recipes list
    """
    from llm_forget.utils.shipped import shipped

    folder = shipped("recipes")
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".yaml", ".ipynb"))
    headers = {f"recipes/{path.relative_to(folder)}": _header(path) for path in files}
    if as_json:
        print_json(headers)
        return
    for name, header in headers.items():
        print(f"{name}\t{header}")


def _header(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    return text.splitlines()[0].lstrip("# ")


@recipes_app.command("copy")
def copy_recipe(
    recipe: Annotated[str, typer.Argument(help="a name from the list, for example recipes/demo/npo.yaml")],
    to: Annotated[Path, typer.Argument(help="file or folder to copy to")] = Path(),
) -> None:
    """Copy a recipe, so that you can edit it.

    Example:
      llm-forget recipes copy recipes/demo/npo.yaml mine.yaml
    """
    from llm_forget.errors import UserError
    from llm_forget.utils.shipped import shipped

    source = shipped(recipe)
    if not source.is_file():
        raise UserError(f"{recipe} does not exist; `llm-forget recipes list` shows all names")
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise UserError(f"{target} already exists; give another name")
    print(shutil.copyfile(source, target))


_Base = Annotated[Path, typer.Option(help="folder of the base model (safetensors)")]
_Adapter = Annotated[Path, typer.Option(help="folder of the adapter")]
_MaxRank = Annotated[int, typer.Option(help="largest rank the server accepts (vLLM: --max-lora-rank)")]
_Target = Annotated[Path, typer.Option("--to", help="folder to create")]


@app.command()
def export(
    base: _Base,
    adapter: _Adapter,
    to: _Target,
    max_rank: _MaxRank = 16,
    allow_lossy: Annotated[
        bool, typer.Option("--allow-lossy", help="allow an SVD cut that changes the adapter noticeably")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write an adapter that vLLM, SGLang, llama.cpp and PEFT all apply alike.

    For GGUF, run convert_lora_to_gguf.py from the llama.cpp sources on the result.

    Example:
      llm-forget export --base runs/target/model --adapter runs/npo/adapter --to exported
    """
    from llm_forget.adapters.export import export_adapter
    from llm_forget.adapters.lora import BaseRecord
    from llm_forget.utils.digests import weights_digest

    record = BaseRecord(name=str(base), digest=weights_digest(base))
    done = export_adapter(adapter, to, max_rank=max_rank, base=record, allow_lossy=allow_lossy)
    if as_json:
        print_json({key: getattr(done, key) for key in ("rank", "residual", "rounding")} | {"folder": str(done.folder)})
        return
    print(f"{done.folder}: rank {done.rank}, cut {done.residual:.2e}, with rounding {done.rounding:.2e}")


@app.command()
def merge(
    base: _Base,
    adapter: _Adapter,
    to: _Target,
    dtype: Annotated[str | None, typer.Option(help="dtype of the weights; default: as in the base")] = None,
) -> None:
    """Merge the adapter into the base weights, so that nobody can remove it.

    Example:
      llm-forget merge --base runs/target/model --adapter runs/npo/adapter --to merged
    """
    from llm_forget.adapters.merge import merge as merge_adapter

    print(merge_adapter(base, adapter, to, dtype))


@app.command()
def doctor(
    base: _Base,
    adapter: _Adapter,
    max_rank: _MaxRank = 16,
    prompt: Annotated[list[str] | None, typer.Option(help="also compare logits on this text; repeatable")] = None,
) -> None:
    """Check an adapter against its base and the rules of each server.

    With --prompt it also compares logits. Exits with status 1 if a check fails.

    Example:
      llm-forget doctor --base runs/target/model --adapter runs/npo/adapter --prompt "What is snow?"
    """
    from llm_forget.adapters.doctor import diagnose

    found = diagnose(base, adapter, max_rank=max_rank, prompts=prompt or ())
    print(found.report())
    raise typer.Exit(0 if found.ok else 1)


app.command()(adapter_commands.subtract)
app.command()(adapter_commands.compose)


def main() -> None:
    """The entry point of the installed command."""
    quiet_libraries()
    run_command(app, sys.argv[1:])


if __name__ == "__main__":
    main()
