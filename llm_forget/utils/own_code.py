"""Code that a recipe or suite names: found and read without running it, and announced before it runs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from llm_forget.errors import RecipeError
from llm_forget.utils.terminal import clean, echo

_REFUSED: ContextVar[str | None] = ContextVar("why no code is run", default=None)
_announced: set[str] = set()


@contextmanager
def without_code(remedy: str) -> Iterator[None]:
    """Context in which no code that a recipe names is run.

    Args:
        remedy: what to do if it shall run, for the message.
    """
    before = _REFUSED.set(remedy)
    try:
        yield
    finally:
        _REFUSED.reset(before)


def announce(what: str) -> None:
    """Say on standard error that code is about to run, once for each.

    Args:
        what: the code, such as the path of a file.

    Raises:
        RecipeError: code is not run in this context.
    """
    remedy = _REFUSED.get()
    if remedy is not None:
        raise RecipeError(f"the recipe names the code in {what}, which is not run here; {remedy}")
    if what not in _announced:
        _announced.add(what)
        echo(f"note: running the code in {clean(what, lines=False)}", file=sys.stderr)


def module_source(name: str) -> Path | None:
    """The file of a module, or the ``__init__`` file of a package, without importing any part of it; None if there is none."""
    found = module_folders(name.rpartition(".")[0]) if "." in name else None
    last = name.rpartition(".")[2]
    if not last.isidentifier() or found == []:
        return None
    try:
        spec = find_spec(last) if found is None else PathFinder.find_spec(last, [str(one) for one in found])
    except (ValueError, ImportError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def module_folders(name: str) -> list[Path]:
    """The folders of a package, without importing it or its parents; none if there is no such package."""
    first, *rest = name.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        return []
    try:
        spec = find_spec(first)
        for part in rest:
            inside = spec.submodule_search_locations if spec else None
            spec = PathFinder.find_spec(part, list(inside)) if inside else None
    except (ValueError, ImportError, AttributeError):
        return []
    return [Path(one) for one in (spec.submodule_search_locations or [])] if spec else []


def may_define(source: Path, function: str) -> bool:
    """Whether a file seems to define a class with a function, judged by its text.

    A class counts if it defines the function, is a dataclass with a base class, or derives from a class of this package.

    Raises:
        SyntaxError: the file is no Python.
        ValueError: it is no text.
    """
    tree = ast.parse(source.read_text(encoding="utf-8"))
    ours = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
        if str(node.module if isinstance(node, ast.ImportFrom) else alias.name).startswith("llm_forget")
    }
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for one in found:
        defined = any(isinstance(item, ast.FunctionDef) and item.name == function for item in one.body)
        assigned = any(isinstance(item, ast.Assign) and function in map(_root, item.targets) for item in one.body)
        derived = any(_root(base) in ours for base in one.bases)
        decorated = any("dataclass" in ast.unparse(item) for item in one.decorator_list)
        if defined or assigned or derived or (decorated and one.bases):
            return True
    return False


def _root(node: ast.expr) -> str:
    """The first name of an expression: ``a`` of ``a.b[c]``."""
    while not isinstance(node, ast.Name):
        inner = getattr(node, "value", getattr(node, "func", None))
        if not isinstance(inner, ast.expr):
            return ""
        node = inner
    return node.id
