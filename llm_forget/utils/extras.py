"""Optional packages, asked for where they are used."""

from __future__ import annotations

import importlib.util

from llm_forget.errors import MissingExtraError


def require_extra(module: str, what: str, extra: str) -> None:
    """Make sure that an optional package is there.

    Args:
        module: the name that it is imported by.
        what: what needs it, for the message.
        extra: the extra of llm-forget that brings it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{what} needs the package {module}, which is not installed: pip install 'llm-forget[{extra}]'"
        )
