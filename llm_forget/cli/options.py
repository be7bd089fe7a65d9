"""The command line of a recipe: parsed, and described from the dataclasses, their types, defaults and comments."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from llm_forget.errors import RecipeError
from llm_forget.utils.build import Recipe, build, load_recipe, with_overrides

_FIELD = re.compile(r" {4}(\w+) *:")
_WIDTH = 110


def parse_command_line(recipe_class: type[Recipe], argv: Sequence[str]) -> Recipe:
    """``--config file.yaml --key.sub value …`` → a checked recipe; ``--help`` prints every field and ends.

    Args:
        recipe_class: the dataclass to fill.
        argv: the arguments after the script's name. Values are read as YAML: ``--train.epochs 3 --adapter null``.

    Raises:
        RecipeError: with every mistake found, each with its remedy.
    """
    if {"--help", "-h"} & set(argv):
        print(describe(recipe_class))
        raise SystemExit(0)
    path, overrides = None, {}
    rest = list(argv)
    while rest:
        flag, separator, value = rest.pop(0).partition("=")
        if not flag.startswith("--") or len(flag) == 2:
            raise RecipeError(f"{flag!r} is not an option; give --config FILE and then --key.sub VALUE")
        if not separator:
            if not rest:
                raise RecipeError(f"{flag} has no value; write {flag} VALUE")
            value = rest.pop(0)
        if flag == "--config":
            path = value
        else:
            overrides[flag[2:].replace("-", "_")] = value
    if path is None and not overrides:
        raise RecipeError(
            "no recipe given; add --config FILE, for example --config recipes/demo/npo.yaml; --help has all options"
        )
    if path is not None:
        return load_recipe(recipe_class, path, overrides)
    return build(recipe_class, with_overrides({}, overrides), "the recipe that the options make")


def describe(recipe_class: Any) -> str:
    """Every field that a recipe of this class may hold, as ``--key.sub TYPE [default]`` with what it means."""
    lines = [
        str(inspect.getdoc(recipe_class)),
        "",
        "--config FILE",
        "      A recipe in YAML, your own or one that `llm-forget recipes list` names; the options below change it, or make the",
        "      whole of it. Values are read as YAML: --train.epochs 3 --adapter null",
        "",
        *_described(recipe_class, "", {}),
    ]
    return "\n".join(lines)


def _described(cls: Any, prefix: str, seen: dict[Any, str]) -> Iterator[str]:
    hints, meanings = get_type_hints(cls), comments(cls)
    for item in fields(cls):
        hint, name, meaning = hints[item.name], prefix + item.name, meanings.get(item.name, "")
        inner = next((one for one in (hint, *get_args(hint)) if is_dataclass(one)), None)
        nested = inner is not None and get_origin(hint) is not list
        yield f"--{name}  {_type(hint)}{_default(item, nested)}"
        if meaning:
            yield textwrap.fill(meaning, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if nested and inner in seen:
            yield f"      Fields as --{seen[inner]}."
        elif nested:
            seen[inner] = name
            yield from _described(inner, f"{name}.", seen)


def comments(cls: Any) -> dict[str, str]:
    """The comment lines that stand above each field of a dataclass, joined."""
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


def _default(item: Field[Any], nested: bool) -> str:
    if item.default is not MISSING:
        return f" [{_yaml(item.default)}]"
    if item.default_factory is MISSING:
        return " (required)"
    return "" if nested else f" [{_yaml(item.default_factory())}]"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
