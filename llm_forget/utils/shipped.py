"""Files that come with the package: recipes, suites and the capability set, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(path: str) -> Path:
    """The path of a file such as ``recipes/demo/npo.yaml``; it may not exist.

    A checkout has ``recipes`` and ``eval`` next to the package; a wheel has them inside it.
    """
    checkout = _PACKAGE.parent / path
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "_shipped" / path
