"""A copy of the package to which tests add files, as a contributor would; the package itself is not changed."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from places import HELPERS, ROOT


def copy_package(folder: Path) -> Path:
    """Copy the package and the files that it ships into a folder; returns the copy of ``llm_forget``."""
    for part in ("llm_forget", "recipes", "eval"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "llm_forget"


@contextmanager
def imported_from(folder: Path) -> Iterator[None]:
    """Make ``import llm_forget`` and imports of the tests' helpers load fresh modules from the copy in ``folder``.

    It runs in the same process, since importing torch and transformers again would be slow. Import inside the block only:
    earlier imports still refer to the package itself.
    """
    before = {name: module for name, module in sys.modules.items() if _is_ours(name, module)}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name, module in sys.modules.items() if _is_ours(name, module)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_ours(name: str, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    is_helper = file is not None and Path(file).parent == HELPERS and name not in (__name__, "places")
    return name.split(".")[0] == "llm_forget" or is_helper
