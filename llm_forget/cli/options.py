"""Parse the command line of a recipe, and describe its fields from the dataclasses: types, defaults and comments."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from llm_forget.errors import RecipeError
from llm_forget.utils.build import Recipe, build, load_recipe, with_overrides
from llm_forget.utils.terminal import echo

_FIELD = re.compile(r" {4}(\w+) *:")
_WIDEST = 110
_INDENT = " " * 6
# Listed last in --help.
_ADVANCED = frozenset(
    [
        "model.attention",
        "model.revision",
        "adapter.dropout",
        "adapter.target_modules",
        "retain.settings",
        "alternative.temperature",
        "stop.patience",
        "stop.per_example",
        "train.weight_decay",
        "train.packing",
        "train.compile",
        "train.keep_checkpoints",
    ]
)


def parse_command_line(recipe_class: type[Recipe], argv: Sequence[str]) -> Recipe:
    """Read ``--config file.yaml --key.sub value …`` into a checked recipe; ``--help`` prints every field and exits.

    Args:
        recipe_class: the dataclass to fill.
        argv: the arguments after the script's name. Values are read as YAML: ``--train.epochs 3 --adapter null``.

    Raises:
        RecipeError: lists every mistake, each with its remedy.
    """
    if {"--help", "-h"} & set(argv):
        echo(describe(recipe_class))
        raise SystemExit(0)
    overrides = read_overrides(argv)
    path = overrides.pop("config", None)
    if path is None and not overrides:
        raise RecipeError(
            "no recipe given; add --config FILE, for example --config recipes/demo/npo.yaml; --help lists all options"
        )
    if path is not None:
        return load_recipe(recipe_class, path, overrides)
    return build(recipe_class, with_overrides({}, overrides), "the recipe given by the options")


def read_overrides(argv: Sequence[str]) -> dict[str, str]:
    """``--key.sub VALUE`` and ``--key.sub=VALUE``: dotted key → text.

    Raises:
        RecipeError: an argument is no option, or has no value.
    """
    found: dict[str, str] = {}
    rest = list(argv)
    while rest:
        flag, separator, value = rest.pop(0).partition("=")
        if not flag.startswith("--") or len(flag) == 2:
            raise RecipeError(f"{flag!r} is not an option; give --config FILE and then --key.sub VALUE")
        if not separator:
            if not rest:
                raise RecipeError(f"{flag} has no value; write {flag} VALUE")
            value = rest.pop(0)
        found[flag[2:].replace("-", "_")] = value
    return found


# Class of the recipe: script, command, recipe of the package, and an override, for --help.
_USES = {
    "UnlearnRecipe": ("recipes/unlearn.py", "unlearn", "recipes/demo/npo.yaml", "--train.epochs 3 --adapter null"),
    "FinetuneRecipe": ("recipes/finetune.py", "finetune", "recipes/demo/target.yaml", "--train.epochs 3 --merge false"),
    "EvalRecipe": ("eval/forget_qa.py", "evaluate", "eval/demo.yaml", "--suite custom --data_dir my_data"),
    "CapabilityRecipe": ("eval/capability.py", "", "", "--limit 100 --benchmarks null"),
}


def _usage(recipe_class: Any, width: int) -> list[str]:
    """The head of ``--help``: the commands, and what ``--config`` and the values mean."""
    script, command, shipped_recipe, example = _USES[recipe_class.__name__]
    programs = [f"accelerate launch {script}", *([f"llm-forget {command}"] if command else [])]
    named = f", or the name of one in the package, for example {shipped_recipe}" if shipped_recipe else ""
    usage = []
    for place, program in enumerate(programs):
        line = f"{'   or:' if place else 'Usage:'} {program} --config FILE [--key.sub VALUE …]"
        usage += textwrap.wrap(line, width, subsequent_indent=_INDENT, break_on_hyphens=False)
    return [
        *usage,
        "",
        *textwrap.wrap(" ".join(str(inspect.getdoc(recipe_class)).split()), width),
        "",
        "--config FILE",
        *_indented(f"A recipe in YAML: your own file{named}.", width),
        "--key.sub VALUE",
        *_indented(
            f"Sets one of the fields below, with or without a recipe. Values are read as YAML, for example {example}",
            width,
        ),
        "",
    ]


def describe(recipe_class: Any) -> str:
    """The text of ``--help``: each field as ``--key.sub TYPE [default]`` with its comment, rare fields last."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    common: list[str] = []
    advanced: list[str] = []
    for key, entry in _entries(recipe_class, None, "", {}, width):
        (advanced if key in _ADVANCED else common).extend(entry)
    return "\n".join(
        [
            *_usage(recipe_class, width),
            *common,
            *(["", "Advanced options, rarely needed:", "", *advanced] if advanced else []),
        ]
    )


def _entries(cls: Any, given: Any, prefix: str, seen: dict[Any, str], width: int) -> Iterator[tuple[str, list[str]]]:
    """(dotted key, its lines) of every field. The fields of a dataclass that occurs twice are listed once.

    Defaults are those of the instance ``given``, if the recipe has one, otherwise those of the class.
    """
    hints, meanings = get_type_hints(cls), comments(cls)
    for item in fields(cls):
        hint, name, meaning = hints[item.name], prefix + item.name, meanings.get(item.name, "")
        inner: Any = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        nested = inner is not None and get_origin(hint) is not list
        meaning = meaning or (" ".join(str(inspect.getdoc(inner)).split()) if nested else "")
        default = _value(item) if given is None else getattr(given, item.name)
        flag = f"--{name}  {_type(hint)}{_default(default)}"
        lines = textwrap.wrap(flag, width, subsequent_indent=_INDENT, break_on_hyphens=False)
        if meaning:
            lines += _indented(meaning, width)
        if nested and inner in seen:
            lines += _indented(f"Fields as --{seen[inner]}.", width)
        if inner is not None and not nested:
            listed = ", ".join(one.name for one in fields(inner))
            lines += _indented(f"Fields of each: {listed}. `llm-forget unlearn --help` explains them.", width)
        yield name, lines
        if nested and inner not in seen:
            seen[inner] = name
            yield from _entries(inner, default if is_dataclass(default) else None, f"{name}.", seen, width)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False)


def comments(cls: Any) -> dict[str, str]:
    """The comment lines above each field of a dataclass, joined into one text per field."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if line.strip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        field = _FIELD.match(line)
        if field and above:
            found[field[1]] = " ".join(above)
        above = []
    return found


def _type(hint: Any) -> str:
    if hint is type(None):
        return "null"
    if is_dataclass(hint):
        return "{…}"
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return "|".join(map(_type, get_args(hint)))
    if get_origin(hint) is list:
        return f"[{_type(get_args(hint)[0])}, …]"
    if get_origin(hint) is dict:
        return "{key: value}"
    return str(getattr(hint, "__name__", hint))


def _value(item: Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def _default(value: Any) -> str:
    if value is MISSING:
        return " (required)"
    return "" if is_dataclass(value) or value in ([], {}) else f" [{_yaml(value)}]"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
