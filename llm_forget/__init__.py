"""llm-forget: make a language model forget, and measure that it did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_forget._version import __version__

if TYPE_CHECKING:
    from llm_forget.api import evaluate, unlearn
    from llm_forget.auditing.loaded import audit
    from llm_forget.forgetting.run import forget

__all__ = ["__version__", "audit", "evaluate", "forget", "unlearn"]


def __getattr__(name: str) -> Any:
    """``forget``, ``unlearn``, ``evaluate`` and ``audit`` when they are asked for: importing torch takes seconds."""
    if name in ("evaluate", "unlearn"):
        from llm_forget import api

        return getattr(api, name)
    if name == "audit":
        from llm_forget.auditing.loaded import audit

        return audit
    if name == "forget":
        from llm_forget.forgetting.run import forget

        return forget
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names that are not imported yet."""
    return sorted({*globals(), *__all__})
