"""Files that come with the package: recipes, suites and the capability set, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped(path: str) -> Path:
    """Where a file such as ``recipes/demo/npo.yaml`` lies; the path may not exist.

    A checkout has ``recipes`` and ``eval`` beside the package; a wheel carries them inside it.
    """
    checkout = _PACKAGE.parent / path
    return checkout if (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "_shipped" / path
