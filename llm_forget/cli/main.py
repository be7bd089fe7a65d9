"""The command line: `llm-forget …`, one thin function a command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_forget.cli import adapters as adapter_commands
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
    help="Make a language model forget, and measure that it did. With --debug, errors show their traceback.",
    epilog="Exit status: 0 done; 1 done, and the answer is no (doctor); 2 something given is wrong; 3 an error inside; "
    "130 interrupted. Tab completion: llm-forget --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(help="The recipes that come with the package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.command()(seeds)
app.command()(compare)
app.command()(report)
app.command()(chat)
_ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}
# --help goes to the script too, which knows every field of its recipe
_TO_SCRIPT = {**_ANY_OPTION, "help_option_names": []}


@app.command()
def demo(
    data_only: Annotated[
        bool, typer.Option("--data-only", help="write the people that recipes/demo reads, and stop")
    ] = False,
) -> None:
    """Run the demo in ./runs/demo: learn, forget by three methods, measure. A quarter of an hour or so on two cores.

    Example:
      llm-forget demo
    """
    from llm_forget.demo.story import demo_environment, make_people, run_demo

    demo_environment()
    run = make_people if data_only else run_demo
    run(Console(width=None if sys.stdout.isatty() else 100))  # a log is as wide as the table needs


app.command()(methods)


@recipes_app.command("list")
def list_recipes(as_json: Json = False) -> None:
    """List the recipes, each with the first line of its header.

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
    recipe: Annotated[str, typer.Argument(help="as listed, for example recipes/demo/npo.yaml")],
    to: Annotated[Path, typer.Argument(help="file or folder to copy to")] = Path(),
) -> None:
    """Copy a recipe, to change it.

    Example:
      llm-forget recipes copy recipes/demo/npo.yaml mine.yaml
    """
    from llm_forget.errors import UserError
    from llm_forget.utils.shipped import shipped

    source = shipped(recipe)
    if not source.is_file():
        raise UserError(f"{recipe} does not exist; `llm-forget recipes list` shows those that do")
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise UserError(f"{target} exists already; give another name")
    print(shutil.copyfile(source, target))


def _launch_here(script: str, argv: list[str]) -> None:
    """Run one of the launch scripts' ``main`` in this process."""
    import runpy

    from llm_forget.utils.shipped import shipped

    runpy.run_path(str(shipped(script)))["main"](argv)


@app.command(context_settings=_TO_SCRIPT)
def unlearn(context: typer.Context) -> None:
    """Run an unlearning recipe in one process: --config FILE [--key.sub VALUE …]."""
    _launch_here("recipes/unlearn.py", context.args)


@app.command(context_settings=_TO_SCRIPT)
def finetune(context: typer.Context) -> None:
    """Make a target or an oracle in one process: --config FILE [--key.sub VALUE …]."""
    _launch_here("recipes/finetune.py", context.args)


@app.command(context_settings=_TO_SCRIPT)
def evaluate(context: typer.Context) -> None:
    """Measure a model on a suite in one process: --config FILE [--key.sub VALUE …]."""
    _launch_here("eval/forget_qa.py", context.args)


app.command(context_settings=_ANY_OPTION)(plan)

_Base = Annotated[Path, typer.Option(help="folder of the base model (safetensors)")]
_Adapter = Annotated[Path, typer.Option(help="folder of the adapter")]
_Target = Annotated[Path, typer.Option("--to", help="folder to make")]


@app.command()
def export(
    base: _Base, adapter: _Adapter, to: _Target, max_rank: int = 16, allow_lossy: bool = False, as_json: Json = False
) -> None:
    """Write an adapter that vLLM, SGLang, llama.cpp and PEFT load with the same meaning.

    For GGUF run convert_lora_to_gguf.py of llama.cpp's source tree on the result; no PyPI package with it is known.

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
def merge(base: _Base, adapter: _Adapter, to: _Target, dtype: str | None = None) -> None:
    """Write the base with the adapter's change in its weights, so that there is no adapter to take off.

    Example:
      llm-forget merge --base runs/target/model --adapter runs/npo/adapter --to merged
    """
    from llm_forget.adapters.export import merge as merge_adapter

    print(merge_adapter(base, adapter, to, dtype))


@app.command()
def doctor(base: _Base, adapter: _Adapter, max_rank: int = 16, prompt: list[str] | None = None) -> None:
    """Check an adapter against its base and each server's rules; with --prompt, compare logits too. Exit status 1 if not ok.

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
    """Entry point of the installed command."""
    quiet_libraries()
    run_command(app, sys.argv[1:])


if __name__ == "__main__":
    main()
