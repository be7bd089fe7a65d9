"""An audit of a server against an audit of the files."""

from __future__ import annotations

import json
from pathlib import Path

from planted import made as attack_named

from llm_forget.auditing.attack import Access
from llm_forget.auditing.audit import PACKAGE
from llm_forget.auditing.results import StoredAudit
from llm_forget.utils.plugins import names_in


def served_attacks() -> list[str]:
    """The attacks that a server with chat, tokens and log-probs allows."""
    served = Access.CHAT | Access.TOKENS | Access.LOGPS
    return [name for name in names_in(PACKAGE, "attack") if not attack_named(name).needs & ~served]


def check_verdicts(folder: Path, here: StoredAudit | None, *, within: float, sampled: str = "") -> None:
    """An audit of a server has the grade and the verdicts of an audit of the files.

    Args:
        folder: result of the audit of the server.
        here: the audit of the files, on ``merged_fp32``.
        within: the largest difference of a score.
        sampled: an attack for which the server draws other samples; its interval has to overlap.
    """
    assert here is not None
    raw = json.loads((folder / "audit.json").read_text())
    assert (raw["grade"]["level"], raw["grade"]["words"]) == (here.grade.level, here.grade.words)
    assert {cell["attack"] for cell in raw["cells"]} == set(served_attacks())
    for cell in raw["cells"]:
        own = here.cell(cell["attack"], "merged_fp32")
        assert own is not None
        if cell["attack"] == sampled:
            assert cell["low"] <= own.high
            assert own.low <= cell["high"]
            continue
        assert (cell["answer"], cell["rows"]) == (own.answer, own.rows), cell["attack"]
        assert abs(cell["value"] - own.value) <= within, cell["attack"]
