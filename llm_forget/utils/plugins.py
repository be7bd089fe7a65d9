"""Find a method, retain term or metric by its file name, module or path. There is no registry."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from llm_forget.errors import RecipeError
from llm_forget.utils.build import build
from llm_forget.utils.own_code import announce, may_define, module_source

Base = TypeVar("Base")


def names_in(package: str, function: str | None = None) -> list[str]:
    """The names of the modules of a package, sorted.

    Args:
        package: the package.
        function: only modules that hold a dataclass with this method; None for all modules.
    """
    folder = importlib.import_module(package).__path__
    names = sorted(module.name for module in pkgutil.iter_modules(folder))
    if function is None:
        return names
    return [name for name in names if _classes(importlib.import_module(f"{package}.{name}"), function)]


def _classes(module: ModuleType, function: str) -> list[type]:
    """The dataclasses of a module that have a method."""
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and is_dataclass(value)
        and callable(getattr(value, function, None))
    ]


def find_class(package: str, name: str, function: str) -> type:
    """Find the one dataclass with a given function in a file.

    Args:
        package: the package of the shipped files, for example ``llm_forget.methods``.
        name: the name of a module of that package, the path of a Python file (``mine.py``), or an installed module, with or
            without the class (``package.module``, ``package.module:Mine``). Code outside the package is announced before it
            runs, and runs only if it seems to define such a class.
        function: a function that the class must have, for example ``forget_loss``.

    Raises:
        RecipeError: there is no such file, or it has no such class or several.
    """
    wanted, _, chosen = name.partition(":") if not name.endswith(".py") else (name, "", "")
    module = _load(package, wanted, function)
    found = [one for one in _classes(module, function) if chosen in ("", one.__name__)]
    if not found and module.__name__.startswith(f"{package}."):
        known = ", ".join(names_in(package, function))
        raise RecipeError(
            f"{name} is no {_kind(package)} that can be named: it has no class with a `{function}`. Known: {known}"
        )
    if len(found) != 1:
        raise RecipeError(
            f"{_kind(package)} {name!r}: found {len(found)} dataclasses with a `{function}` in {module.__file__}; "
            "the file must define exactly one"
        )
    return found[0]


def with_defaults(cls: type, base: type[Base]) -> type[Base]:
    """The class itself, or a subclass that adds the defaults of ``base`` if a user's class does not derive from it."""
    if issubclass(cls, base):
        return cls
    return type(cls.__name__, (cls, base), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def make_named(entries: Sequence[str | Mapping[str, Any]], package: str, function: str) -> list[Any]:
    """Create the metrics, attacks or aggregates that a list in a suite names.

    Args:
        entries: names, or mappings with a ``name`` and settings, such as ``{name: rouge, part: f1}``.
        package: the package of the shipped files of this kind, such as ``llm_forget.evaluation.metrics``.
        function: the method that their classes have.

    Raises:
        RecipeError: an unknown name or setting, or two entries with the same label.
    """
    kind = package.rsplit(".", 1)[-1]
    made: list[Any] = []
    for entry in entries:
        values = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError(f"an entry of {kind} has no name; write a name, or {{name: NAME, setting: value}}")
        made.append(build(find_class(package, name, function), values, name))
    labels = [one.label for one in made]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise RecipeError(f"{kind} gives {', '.join(twice)} twice; leave one of each out")
    return made


def _kind(package: str) -> str:
    """The kind of plugin in a package, in the singular."""
    return package.rsplit(".", 1)[-1].removesuffix("s")


def _load(package: str, name: str, function: str) -> ModuleType:
    if name in names_in(package):
        return importlib.import_module(f"{package}.{name}")
    if name.endswith(".py"):
        return _load_file(Path(name), function, f"{_kind(package)} {name!r}")
    kind = _kind(package)
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        source = module_source(name)
        if source is None:
            raise RecipeError(f"{kind} {name!r}: the module {name} cannot be found; is it installed?")
        _check_source(source, function, f"{kind} {name!r}")
        announce(str(source))
        try:
            return importlib.import_module(name)
        except Exception as error:
            raise RecipeError(f"{kind} {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    known = names_in(package, function)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise RecipeError(
        f"unknown {kind} {name!r}{hint} Known: {', '.join(known)}. "
        "For your own, give the path of its .py file, or its module as package.module"
    )


def _check_source(source: Path, function: str, what: str) -> None:
    """Check before code runs that it seems to be what the recipe says, so that a mistyped name runs nothing.

    Raises:
        RecipeError: it is not.
    """
    try:
        fits = source.suffix != ".py" or may_define(source, function)  # a compiled module has no text to read
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        raise RecipeError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error
    if not fits:
        raise RecipeError(f"{what}: found 0 dataclasses with a `{function}` in {source}; its code was not run")


def _load_file(path: Path, function: str, what: str) -> ModuleType:
    if not path.is_file():
        raise RecipeError(f"{path} does not exist; give the path of a Python file, relative to the current folder")
    spec = importlib.util.spec_from_file_location(f"llm_forget_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} cannot be imported as a Python file")
    _check_source(path, function, what)
    announce(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module by name during execution
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
