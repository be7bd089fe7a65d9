"""Check for optional packages at their first use."""

from __future__ import annotations

import importlib.util

from llm_forget.errors import MissingExtraError


def require_extra(module: str, what: str, extra: str) -> None:
    """Check that an optional package is installed.

    Args:
        module: its import name.
        what: the feature that needs it, for the message.
        extra: the extra of llm-forget that installs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(
            f"{what} needs the package {module}, which is not installed: pip install 'llm-forget[{extra}]'"
        )
