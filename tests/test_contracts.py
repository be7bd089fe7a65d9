"""Test the structure of the package: every import contract can fail, there are no import cycles, and files are short."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

PACKAGE = ROOT / "llm_forget"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LONGEST = 450  # lines of a Python file
# The files to read in the first five minutes, after the README's tree.
TOUR = (
    "recipes/demo/npo.yaml",
    "llm_forget/methods/npo.py",
    "llm_forget/methods/__init__.py",
    "llm_forget/train/trainer.py",
    "tests/methods/test_method_contract.py",
)


def forbidden_import(contract: dict[str, Any]) -> tuple[str, str]:
    """Return the importer and the imported module that break a contract."""
    if contract["type"] == "forbidden":
        return contract["source_modules"][0], contract["forbidden_modules"][0]
    assert contract["type"] == "layers", f"no planted import for contracts of type {contract['type']}"
    upper, lower = (layer.split("|")[0].strip() for layer in contract["layers"][-2:])
    (container,) = contract["containers"]
    return f"{container}.{lower}", f"{container}.{upper}"


def file_of(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def lint(root: Path) -> tuple[int, str]:
    """Return exit status and output of import-linter on the package in a folder."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("contract", CONTRACTS, ids=[contract["name"] for contract in CONTRACTS])
def test_a_planted_import_breaks_the_contract(contract: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("importlinter", reason="pip install 'llm-forget[dev]'")
    shutil.copytree(PACKAGE, tmp_path / "llm_forget", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    importer, imported = forbidden_import(contract)
    with file_of(importer, tmp_path).open("a", encoding="utf-8") as file:
        file.write(f"\nimport {imported}\n")
    status, shown = lint(tmp_path)
    assert status == 1, shown
    assert f"{contract['name']} BROKEN" in shown
    assert f"{importer} -> {imported}" in shown


def modules_in(package: Path) -> dict[str, Path]:
    """Return all modules of a package with their files."""
    files = sorted(package.rglob("*.py"))
    dotted = {file: ".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in dotted.items()}


def imports(node: ast.AST) -> Iterator[str]:
    """Return the names imported at load time or in functions: modules, or members of modules, except for types only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports are not resolved here"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (name for other in child.orelse for name in imports(other))
        else:
            yield from imports(child)


def graph_of(package: Path) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, without the parent packages that Python also loads."""
    modules = modules_in(package)
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = set(imports(ast.parse(file.read_text(encoding="utf-8"))))
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = {name for name in found & set(modules) if not f"{module}.".startswith(f"{name}.")}
    return graph


def test_there_are_no_import_cycles() -> None:
    graph = graph_of(PACKAGE)
    assert sum(map(len, graph.values())) > 300, "the imports were found"
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("inside", ["import {}", "def f():\n    from {} import x"])
def test_a_planted_cycle_is_found(inside: str, tmp_path: Path) -> None:
    package = tmp_path / "rooms"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("from rooms import two")
    (package / "two.py").write_text(inside.format("rooms.one"))
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph_of(package)).static_order())
    (package / "two.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rooms.one")
    assert graph_of(package) == {"rooms": set(), "rooms.one": {"rooms.two"}, "rooms.two": set()}


def test_the_package_root_stays_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_no_python_file_is_long() -> None:
    files = [
        file for room in ("llm_forget", "tests", "scripts", "recipes", "eval") for file in (ROOT / room).rglob("*.py")
    ]
    assert len(files) > 200, "the files were found"
    long = {str(file.relative_to(ROOT)): lines_of(file) for file in files if lines_of(file) > LONGEST}
    assert not long


def test_the_five_minute_tour_is_short() -> None:
    """The README's tree and five files have at most 600 lines in total."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = [block for block in readme.split("```") if block.startswith("\nllm_forget/\n")]
    assert len(tree.strip().splitlines()) + sum(lines_of(ROOT / file) for file in TOUR) <= 600
