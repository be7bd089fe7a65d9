"""Build dataclasses from YAML and command-line overrides. All mistakes in a recipe are reported at once."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from llm_forget.errors import RecipeError, UserError
from llm_forget.utils.safe_yaml import MOST_LEVELS, MOST_VALUES, NotPlainYaml, load_yaml, read_yaml
from llm_forget.utils.shipped import shipped

Recipe = TypeVar("Recipe")
_PATHS = {"output_dir", "adapter", "path", "name"}
_TEXTS = {"system_prompt"}  # not paths, whatever they begin with
_LONGEST_NAME = 180  # 255 bytes in most file systems, minus the length of temporary names
_LARGEST = 2**53  # integers above it are not exact in floats, and no setting is as large


def load_recipe(recipe_class: type[Recipe], path: str | Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe file, apply dotted overrides, and check the result.

    Args:
        recipe_class: the dataclass to build.
        path: a file, or the name of a recipe that comes with the package.
        overrides: dotted keys and their values as YAML text.

    Raises:
        RecipeError: lists every mistake.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        file = shipped(str(path))
    if not file.is_file():
        raise RecipeError(
            f"recipe {path} does not exist; `llm-forget recipes list` shows those that come with the package"
        )
    try:
        values = read_yaml(file)
    except NotPlainYaml as error:
        raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(
            f"recipe {path} holds {type(values).__name__}, not keys and values; see recipes/demo/npo.yaml"
        )
    return build(recipe_class, with_overrides(values, overrides or {}), str(path))


def with_overrides(values: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """Set dotted keys in place; their values are parsed as YAML.

    Raises:
        RecipeError: a value is not valid YAML, or the parent of a key is not a mapping.
    """
    for key, text in overrides.items():
        _set(values, key, text)
    return values


def _set(values: dict[str, Any], dotted: str, text: str) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        if values.get(part) is None:
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict):
            raise RecipeError(f"--{dotted}: {part} is a value and has no keys")
    try:
        values[last] = load_yaml(text)
    except NotPlainYaml as error:
        raise RecipeError(f"--{dotted} {_short(text)}: not a YAML value: {error}; quote it") from error


def build(recipe_class: type[Recipe], values: Mapping[str, Any], where: str) -> Recipe:
    """Build a dataclass from values, and collect all errors into one RecipeError.

    Args:
        recipe_class: the dataclass.
        values: the fields, nested as in YAML.
        where: the source of the values, for the message.
    """
    from pydantic import ValidationError  # a fifth of a second, which --help need not wait for

    _check_extent(values, where)
    values = at_home(values)
    problems = _unknown_keys(recipe_class, values, "") + _unusable_texts(values)
    try:
        wanted: Any = recipe_class  # mypy takes a type variable for unhashable
        recipe: Recipe = _validator(wanted).validate_python(_filled(recipe_class, values))
        problems += _too_large(recipe)
    except ValidationError as error:
        problems += [_explain(item) for item in error.errors()]
    except UserError as error:
        problems.append(str(error))
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
        raise RecipeError(f"{where} cannot be used:\n{listed}")
    return recipe


@lru_cache(maxsize=64)
def _validator(recipe_class: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(recipe_class)  # takes 9 ms, so it is kept


def at_home(values: Any, key: str = "") -> Any:
    """Recipe values with ``~`` at the start of a path replaced by the home folder, as a shell does. Texts are left alone."""
    if isinstance(values, Mapping):
        return {name: at_home(value, str(name)) for name, value in values.items()}
    if isinstance(values, list):
        return [at_home(value, key) for value in values]
    is_path = isinstance(values, str) and values.startswith("~/") and key not in _TEXTS
    return str(Path(values).expanduser()) if is_path else values


def _filled(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with the recipe's own defaults in a section that is given in part.

    Fine-tuning has other defaults than unlearning. Without this step, ``--train.epochs 3`` would also change the batch size.
    """
    filled = dict(values)
    for item in fields(cls):
        given = values.get(item.name)
        default: Any = None if item.default_factory is MISSING else item.default_factory()
        if isinstance(given, Mapping) and is_dataclass(default) and not isinstance(default, type):
            filled[item.name] = {**asdict(default), **given}
    return filled


def _explain(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"] if isinstance(part, int) or not _is_type_name(str(part)))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{place}: is missing and has no default"
    given = "" if item["type"] == "value_error" else f" (given: {_short(item['input'])})"
    return f"{place}: {message}{given}" if place else f"{message}{given}"


def _is_type_name(part: str) -> bool:
    """Whether a part of pydantic's location names a union member, as in `adapter.AdapterConfig.rank`."""
    return part[:1].isupper() or part in {"str", "float", "int", "bool"} or "[" in part


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_keys(cls: Any, values: Any, prefix: str) -> list[str]:
    """Unknown keys with the closest known one; covers nested dataclasses, unions and lists."""
    if not is_dataclass(cls) or not isinstance(values, Mapping):
        return []
    hints = get_type_hints(cls)
    known = [item.name for item in fields(cls)]
    problems = []
    for key, value in values.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            problems.append(f"{prefix}{key}: unknown key; {hint}known here: {', '.join(known)}")
            continue
        for inner in _dataclasses_in(hints[key]):
            nested = value if isinstance(value, list) else [value]
            problems += [found for item in nested for found in _unknown_keys(inner, item, f"{prefix}{key}.")]
    return problems


def _leaves(values: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value that is no list, mapping or dataclass."""
    if is_dataclass(values) and not isinstance(values, type):
        values = {item.name: getattr(values, item.name) for item in fields(values)}
    if isinstance(values, Mapping):
        for key, item in values.items():
            yield from _leaves(item, f"{place}.{key}".strip("."))
    elif isinstance(values, list):
        for item in values:
            yield from _leaves(item, place)
    else:
        yield place, values


def _check_extent(values: Any, where: str) -> None:
    """Refuse values that are nested without end or larger than any recipe, as a Python caller can build them.

    Raises:
        RecipeError: more than ``MOST_LEVELS`` levels or ``MOST_VALUES`` values.
    """
    level, seen = [values], 0
    for _ in range(MOST_LEVELS):
        below = (one.values() if isinstance(one, Mapping) else one for one in level if isinstance(one, Mapping | list))
        level = list(islice(chain.from_iterable(below), MOST_VALUES + 1))
        seen += len(level)
        if seen > MOST_VALUES:
            raise RecipeError(f"{where} cannot be used: it has more than {MOST_VALUES:,} values")
        if not level:
            return
    raise RecipeError(f"{where} cannot be used: it is nested more than {MOST_LEVELS} levels deep")


def _unusable_texts(values: Any) -> list[str]:
    """Texts that cannot be file names, reported here rather than in the middle of a run."""
    return [problem for place, value in _leaves(values) if (problem := _unusable_text(place, value)) is not None]


def _unusable_text(place: str, text: Any) -> str | None:
    if not isinstance(text, str):
        return None
    if "\0" in text:
        return f"{place}: contains a null character; remove it"
    is_path = place.rpartition(".")[2] in _PATHS
    longest = max((part for part in text.split("/")), key=len) if is_path else ""
    if len(longest.encode("utf-8", "replace")) > _LONGEST_NAME:
        return f"{place}: {_short(longest)} is longer than the {_LONGEST_NAME} bytes allowed for a file name"
    return None


def _too_large(recipe: Any) -> list[str]:
    """Integers beyond any setting, which would fail in the middle of a run."""
    return [
        f"{place}: is about 10^{int(value.bit_length() * 0.30103)}; give a number below {_LARGEST:.0e}"
        for place, value in _leaves(recipe)
        if isinstance(value, int) and abs(value) >= _LARGEST
    ]


def _dataclasses_in(hint: Any) -> list[Any]:
    if is_dataclass(hint):
        return [hint]
    if get_origin(hint) in (Union, types.UnionType, list):
        return [found for argument in get_args(hint) for found in _dataclasses_in(argument)]
    return []


def to_yaml(recipe: Any) -> str:
    """The recipe as YAML, with all defaults written out."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
