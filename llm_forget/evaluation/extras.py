"""Packages that only the evaluation needs, asked for before any work is done."""

from __future__ import annotations

from llm_forget.utils.extras import require_extra


def require(module: str, what: str) -> None:
    """Make sure that a package of the extra ``eval`` is there.

    Args:
        module: the name that it is imported by.
        what: what needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    require_extra(module, what, "eval")
