"""The pages of a certificate: one for the person concerned, in plain words, and one for the auditor, with everything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_forget.auditing.grade import GROUPS
from llm_forget.auditing.matrix import NOT_RUN
from llm_forget.certificates.envelope import Envelope
from llm_forget.certificates.manifest import AUDITOR_NAME, PERSON_NAME
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import write_text
from llm_forget.utils.terminal import clean

_ROLES = ("before", "after", "oracle", "sham")
# What an audit's grade means to a person without technical knowledge.
_GRADES = {
    "E0": "Asked directly, the model no longer gives the answers. Other ways of asking or changing it still bring parts back.",
    "E1": "No way of asking that was tried brings the answers back.",
    "E2": "The model answers like one that never saw the data, in everything that was compared.",
    "E3": "The model answers like one that never saw the data, and it stays so after compression and more training.",
    "E4": "The model is the same as one that was trained without the data.",
}
_NOT_FORGOTTEN = "The tests found that the model still gives some of the answers."
_NO_GRADE = "The tests could not be graded: "


def write_pages(statement: Mapping[str, Any], envelope: Envelope, folder: Path) -> tuple[Path, Path]:
    """Write ``person.html`` and ``auditor.html``. They are made from the statement alone, so they hold no text of any row.

    Args:
        statement: the content of the statement.
        envelope: the signed statement.
        folder: where to write.

    Returns:
        The files.
    """
    require_extra("jinja2", "a page", "report")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llm_forget.certificates", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[[Any], str]] = {"percent": percent, "shown": shown, "figure": figure}
    environment.filters |= filters
    predicate = statement["predicate"]
    known = {
        "statement": statement,
        "p": predicate,
        "ids": ", ".join(one["id"] for one in predicate["requests"]),
        "digest": envelope.digest,
        "signers": [name for name, _ in envelope.signatures],
        "measured": _measured(predicate["numbers"]),
        "verdict": _verdict(predicate.get("audit")),
        "groups": GROUPS,
        "tried": {
            cell["group"] for cell in (predicate.get("audit") or {"cells": ()})["cells"] if cell["answer"] != NOT_RUN
        },
        "plain_limits": _plain_limits(statement),
        "roles": _ROLES,
        "attacks": _attacks(predicate.get("audit")),
        "flat": _flat,
    }
    written = []
    for name in (PERSON_NAME, AUDITOR_NAME):
        written.append(folder / name)
        write_text(folder / name, environment.get_template(f"{name}.j2").render(**known))
    return written[0], written[1]


def percent(value: float | None) -> str:
    """A share as a rounded percentage."""
    if value is None:
        return "not measured"
    if 0 < value < 0.01:
        return "less than 1 %"
    return f"{value:.0%}".replace("%", " %")


def figure(entry: Mapping[str, Any] | None) -> str:
    """A figure with its interval."""
    if entry is None or entry.get("value") is None:
        return "–"
    ends = "" if entry.get("low") is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    return f"{entry['value']:.3f}{ends}"


def shown(value: Any) -> str:
    """Any value of a statement as text."""
    if value is None or value in ({}, []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value)


def _measured(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per suite and forget set, the probability of the answers for every role."""
    found = []
    for suite, roles in numbers.items():
        for name in roles["rows"]:
            label = f"{name}.probability"
            values = {role: roles[role][label]["value"] for role in _ROLES if label in roles.get(role, {})}
            if name.startswith("forget") and "after" in values:
                found.append({"suite": suite, "set": name, **{role: values.get(role) for role in _ROLES}})
    return found


def _verdict(audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "The model was not attacked, so nothing is known about other ways of getting the answers."
    level, words = audit["grade"]["level"], str(audit["grade"]["words"])
    if level is not None:
        return _GRADES[level]
    return _NOT_FORGOTTEN if words.startswith("not forgotten") else f"{_NO_GRADE}{words.partition(': ')[2]}."


def _plain_limits(statement: Mapping[str, Any]) -> list[str]:
    """The limits for the person concerned; the auditor's page has all of them."""
    predicate = statement["predicate"]
    lines = [
        "It shows how the model behaves. It does not prove that nothing about the entries is left in it.",
        "Somebody with more time, or with other ways than those that were tried, might still get something out.",
    ]
    if not any("oracle" in roles for roles in predicate["numbers"].values()):
        lines.append("There was no model that never saw the entries to compare with.")
    if "adapter" in predicate["models"]:
        lines.append(
            "The change is an addition to the model. Whoever has the model from before still has what it knew."
        )
    lines.append("It is about this one model. Copies, backups and other models are not covered.")
    lines.append("It is no legal assessment.")
    return lines


def _attacks(audit: Mapping[str, Any] | None) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Attack → form → cell."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in () if audit is None else audit["cells"]:
        found.setdefault(cell["attack"], {})[cell["form"]] = cell
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in values.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) and item else {f"{prefix}{key}": item}
    return found
