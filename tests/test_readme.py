"""The pages people read: every command in them exists with its options, every recipe builds, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from places import ROOT

from llm_forget.cli.main import app
from llm_forget.cli.options import parse_command_line
from llm_forget.config import FinetuneRecipe, UnlearnRecipe
from llm_forget.evaluation.recipe import CapabilityRecipe, EvalRecipe
from llm_forget.utils.build import build

PAGES = [
    name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "recipes/README.md",
        "recipes/accelerate/README.md",
        "recipes/launching.md",
        "eval/README.md",
        "llm_forget/adapters/README.md",
        "llm_forget/certificates/README.md",
        "llm_forget/requests/README.md",
        "llm_forget/studio/README.md",
    )
    if (ROOT / name).is_file()
]
MOST_WORDS = 1100
RECIPES: dict[str, Any] = {
    "recipes/unlearn.py": UnlearnRecipe,
    "recipes/finetune.py": FinetuneRecipe,
    "eval/forget_qa.py": EvalRecipe,
    "eval/capability.py": CapabilityRecipe,
}
TO_RECIPE = {"unlearn": UnlearnRecipe, "finetune": FinetuneRecipe, "evaluate": EvalRecipe}
# Programs of others; their options are theirs.
OTHERS = {
    "vllm",
    "transformers",
    "torchrun",
    "sbatch",
    "srun",
    "ray",
    "git",
    "cd",
    "ls",
    "export",
    "pytest",
    "python",
    "source",
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in (*blocks(page, "bash"), *blocks(page, "sh"), *blocks(page, "shell")):
            # a shell variable that takes a command's output, as job scripts have, is no command of its own
            lines = [line for line in block.replace("\\\n", " ").splitlines() if not re.match(r"\w+=\$\(", line)]
            found += [(page, line) for line in lines if shlex.split(line, comments=True)]
    return found


def check_recipe(kind: Any, words: list[str]) -> None:
    given = list(words)
    if "--help" in given:
        return
    if "--config" in given:
        place = given.index("--config")
        shipped = (ROOT / given[place + 1]).is_file()
        if not shipped:  # the reader's own file: only the options can be checked
            given[place + 1] = {UnlearnRecipe: "recipes/demo/npo.yaml", FinetuneRecipe: "recipes/demo/target.yaml"}.get(
                kind, "eval/demo.yaml"
            )
            if kind is CapabilityRecipe:
                given[place : place + 2] = ["--model.name", "MODEL", "--output_dir", "runs/mine"]
    parse_command_line(kind, given)


def check_command(words: list[str]) -> None:
    while words and "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]  # a variable of the environment
    program, rest = words[0], words[1:]
    if program == "bash":
        assert (ROOT / rest[0]).is_file()
        subprocess.run(["bash", "-n", rest[0]], cwd=ROOT, check=True)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for name in re.findall(r"\[([\w,-]+)\]", " ".join(rest)):
            assert set(name.split(",")) <= extras.keys(), name
    elif program == "accelerate":
        script = next(place for place, word in enumerate(rest) if word.endswith(".py"))
        if "--config_file" in rest:
            assert (ROOT / rest[rest.index("--config_file") + 1]).is_file()
        check_recipe(RECIPES[rest[script]], rest[script + 1 :])
    elif program == "llm-forget":
        check_ours(rest)
    elif program == "python" and rest[0].endswith(".py"):
        assert (ROOT / rest[0]).is_file()
    else:
        assert program in OTHERS, f"{program} is no command that this test knows"


def check_ours(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"llm-forget {words[0]} does not exist"
        command, words = command.commands[words[0]], words[1:]
    if command.name in TO_RECIPE:
        check_recipe(TO_RECIPE[command.name], words)
        return
    known = {flag for item in command.params for flag in (*item.opts, *item.secondary_opts)} | {"--help"}
    free = command.context_settings.get("ignore_unknown_options", False)
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
    assert free or not unknown, f"llm-forget {command.name} has no {unknown}"


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_command_exists_with_its_options(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check_command(shlex.split(line.replace("…", "VALUE"), comments=True))


@pytest.mark.parametrize("line", ["llm-forget forgot", "llm-forget merge --onto x", "bash scripts/none.sh", "rm -r x"])
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_command(shlex.split(line))


@pytest.mark.parametrize("page", PAGES)
def test_the_recipes_of_a_page_build(page: str) -> None:
    for block in blocks(page, "yaml"):
        values = yaml.safe_load(block)
        if isinstance(values, dict) and {"model", "data", "method", "output_dir"} <= values.keys():
            build(UnlearnRecipe, values, page)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / Path(page).parent / target).exists(), target


def test_the_readme_stays_short() -> None:
    words = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert words <= MOST_WORDS, f"{words} words; {MOST_WORDS} are allowed: move something to the page it is about"


def test_the_first_screen_has_the_commands_the_table_and_the_code() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45]
    for wanted in (
        "bash scripts/demo.sh",
        "bash scripts/test.sh",
        "oracle ",
        "from llm_forget import evaluate, unlearn",
    ):
        assert any(wanted in line for line in first), wanted
