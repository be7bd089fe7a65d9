"""Packages that only the evaluation needs, asked for before any work is done."""

from __future__ import annotations

import importlib.util

from llm_forget.errors import UserError


def require(module: str, what: str) -> None:
    """Make sure that an optional package is there.

    Args:
        module: the name that it is imported by.
        what: what needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs the package {module}, which is not installed: pip install llm-forget[eval]")
