"""The `llm-forget` command: one thin function per subcommand.

Help must come at once, so nothing is imported here beyond typer: each command imports what it needs when it runs.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_forget.cli import adapters as adapter_commands
from llm_forget.cli.audit import audit
from llm_forget.cli.certify import certify, verify
from llm_forget.cli.chat import chat
from llm_forget.cli.compare import compare
from llm_forget.cli.console import Json, print_json, run_command
from llm_forget.cli.deploy import deploy
from llm_forget.cli.entry import quiet_libraries
from llm_forget.cli.find import find
from llm_forget.cli.forget import forget
from llm_forget.cli.keys import keys_app
from llm_forget.cli.launch_file import launch_file
from llm_forget.cli.methods import methods
from llm_forget.cli.new import new
from llm_forget.cli.plan import plan
from llm_forget.cli.report import report
from llm_forget.cli.requests import requests_app
from llm_forget.cli.sanitise import sanitise
from llm_forget.cli.search import search
from llm_forget.cli.seeds import seeds
from llm_forget.cli.share import pull, push
from llm_forget.cli.shred import shred
from llm_forget.cli.studio import studio
from llm_forget.utils.terminal import echo

app = typer.Typer(
    name="llm-forget",
    help="Machine unlearning for language models: unlearn, evaluate, and ship LoRA adapters.",
    epilog="""\b
--debug shows the traceback of an error.
Exit status: 0 success, 1 a check failed (doctor, verify), nothing was found (find) or
not forgotten (forget, unlearn), 2 invalid input, 3 internal error, 130 interrupted.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: no type next to a flag that takes no value
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="List or copy the recipes of the package.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
_LISTED = {"recipes": ("**/*.yaml", "**/*.ipynb"), "eval": ("*.yaml", "suites/*.yaml")}
_INDENT: Any = {"initial_indent": "  ", "subsequent_indent": "  "}
_ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}
# --help is passed on: the recipe's own help lists every field
_RECIPE_OPTIONS = {**_ANY_OPTION, "help_option_names": []}


@app.command(context_settings=_RECIPE_OPTIONS)
def unlearn(context: typer.Context) -> None:
    """Run an unlearning recipe in one process.

    Options: --config FILE [--key.sub VALUE …]; --help lists every field.
    """
    from llm_forget.cli import run

    run.unlearn(context.args)


@app.command(context_settings=_RECIPE_OPTIONS)
def finetune(context: typer.Context) -> None:
    """Fine-tune a target or an oracle in one process.

    Options: --config FILE [--key.sub VALUE …]; --help lists every field.
    """
    from llm_forget.cli import run

    run.finetune(context.args)


@app.command(context_settings=_RECIPE_OPTIONS)
def evaluate(context: typer.Context) -> None:
    """Evaluate a model on a suite in one process.

    Options: --config FILE [--key.sub VALUE …]; --help lists every field.
    """
    from llm_forget.cli import run

    run.evaluate(context.args)


app.command(context_settings=_ANY_OPTION)(forget)
app.command(context_settings=_ANY_OPTION)(new)
app.command(context_settings=_ANY_OPTION)(search)
app.command()(launch_file)
app.command()(push)
app.command()(pull)
app.command()(deploy)
app.command(context_settings=_ANY_OPTION)(plan)
app.command()(find)
app.command()(methods)
app.command()(compare)
app.command()(report)
app.command()(audit)
app.command()(seeds)
app.command()(chat)
app.command()(certify)
app.command()(verify)
app.command()(shred)
app.command()(studio)
app.add_typer(keys_app, name="keys")
app.add_typer(requests_app, name="requests")


@app.command()
def demo(
    data_only: Annotated[
        bool, typer.Option("--data-only", help="only write the data of recipes/demo, without any training")
    ] = False,
) -> None:
    """Run the demo: train, unlearn, evaluate.

    Writes to ./runs/demo. Takes about 8 minutes on two CPU cores.

    \b
    Example:
      llm-forget demo
    """
    from rich.console import Console

    from llm_forget.demo.story import demo_environment, make_people, run_demo

    demo_environment()
    start = make_people if data_only else run_demo
    start(Console(width=None if sys.stdout.isatty() else 100))  # wide enough for the table in a log file


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes and suites of the package with their titles.

    \b
    Example:
      llm-forget recipes list
    """
    from llm_forget.utils.shipped import shipped

    headers = {}
    for folder, patterns in _LISTED.items():
        for path in sorted(path for pattern in patterns for path in shipped(folder).glob(pattern)):
            headers[f"{folder}/{path.relative_to(shipped(folder)).as_posix()}"] = _header(path)
    if as_json:
        print_json(headers)
        return
    for name, header in headers.items():
        if sys.stdout.isatty():
            echo(f"{name}\n{textwrap.fill(header, shutil.get_terminal_size().columns, **_INDENT)}")
        else:
            echo(f"{name}\t{header}")


def _header(path: Path) -> str:
    """The first sentence of the comment at the top of a recipe, or the title of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    lines = itertools.takewhile(re.compile("# *[^# ]").match, text.splitlines())
    return re.split(r"\. (?=[A-Z])", " ".join(line.lstrip("# ") for line in lines))[0].rstrip(".")


@recipes_app.command("copy")
def copy_recipe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="a name that `llm-forget recipes list` shows")],
    to: Annotated[Path, typer.Argument(metavar="TO", help="file or folder to copy to")] = Path(),
) -> None:
    """Copy a recipe or a suite, so that you can edit it.

    \b
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
    try:
        echo(shutil.copyfile(source, target))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}; give another place") from error


_Base = Annotated[Path, typer.Option(metavar="DIR", help="folder of the base model (safetensors)")]
_Adapter = Annotated[Path, typer.Option(metavar="DIR", help="folder of the adapter")]
_MaxRank = Annotated[int, typer.Option(metavar="N", help="largest rank the server accepts (vLLM: --max-lora-rank)")]
_Target = Annotated[Path, typer.Option("--to", metavar="DIR", help="folder to create")]


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
    """Convert an adapter so that every server applies it alike.

    The servers are vLLM, SGLang, llama.cpp and PEFT. For GGUF, run convert_lora_to_gguf.py of llama.cpp on the result.

    \b
    Example:
      llm-forget export --base runs/target/model --adapter runs/npo/adapter \\
        --to exported
    """
    from llm_forget.adapters.export import export_adapter
    from llm_forget.adapters.lora import BaseRecord
    from llm_forget.utils.digests import weights_digest
    from llm_forget.utils.output import writing

    with writing(to, "--to"):
        record = BaseRecord(name=str(base), digest=weights_digest(base))
        done = export_adapter(adapter, to, max_rank=max_rank, base=record, base_folder=base, allow_lossy=allow_lossy)
    if as_json:
        print_json({key: getattr(done, key) for key in ("rank", "residual", "rounding")} | {"folder": str(done.folder)})
        return
    echo(f"{done.folder}: rank {done.rank}, cut {done.residual:.2e}, with rounding {done.rounding:.2e}")


@app.command()
def merge(
    base: _Base,
    adapter: _Adapter,
    to: _Target,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="dtype of the weights; default: as in the base")
    ] = None,
) -> None:
    """Merge an adapter into the weights, so that nobody can remove it.

    \b
    Example:
      llm-forget merge --base runs/target/model --adapter runs/npo/adapter \\
        --to merged
    """
    from llm_forget.adapters.merge import merge as merge_adapter
    from llm_forget.utils.output import writing

    with writing(to, "--to"):
        echo(merge_adapter(base, adapter, to, dtype))


@app.command()
def doctor(
    base: _Base,
    adapter: _Adapter,
    max_rank: _MaxRank = 16,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="also compare logits on this text; repeatable")
    ] = None,
) -> None:
    """Check an adapter against its base and the rules of each server.

    With --prompt it also compares logits. Exits with status 1 if a check fails.

    \b
    Example:
      llm-forget doctor --base runs/target/model --adapter runs/npo/adapter \\
        --prompt "What is snow?"
    """
    from llm_forget.adapters.doctor import diagnose

    found = diagnose(base, adapter, max_rank=max_rank, prompts=prompt or ())
    echo(found.report())
    raise typer.Exit(0 if found.ok else 1)


app.command()(adapter_commands.subtract)
app.command()(adapter_commands.compose)
app.command()(sanitise)


def main() -> None:
    """The entry point of the installed command."""
    quiet_libraries()
    run_command(app, sys.argv[1:])


if __name__ == "__main__":
    main()
