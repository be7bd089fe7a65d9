"""The in-toto statement (v1) of a certificate: subjects and predicate (https://github.com/in-toto/attestation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_forget._version import __version__
from llm_forget.certificates.canonical import parse_canonical
from llm_forget.certificates.merkle import Commitment
from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:llm-forget:unlearning:v1"


@dataclass(frozen=True)
class Request:
    """A request to forget.

    Attributes:
        id: its id, as the office that received it calls it; no name of a person.
        received: the date, YYYY-MM-DD; None if it is not known.
    """

    id: str
    received: str | None = None


def make_statement(
    *,
    requests: Sequence[Request],
    certified: str,
    models: Mapping[str, Mapping[str, Any]],
    rows: Commitment,
    sections: Mapping[str, Any],
    files: Mapping[str, str],
    previous: str | None,
) -> dict[str, Any]:
    """Put a statement together.

    Args:
        requests: the requests.
        certified: time of the statement, RFC 3339 in UTC.
        models: role (base, adapter, model, merged) → ``files`` (name → SHA-256) and further digests.
        rows: the commitment to the rows to forget.
        sections: from ``contents``.
        files: path in the run folder → SHA-256 of each covered file.
        previous: digest of the statement before, or None.
    """
    subjects = [
        {"name": f"{role}/{name}", "digest": {"sha256": digest}}
        for role, one in models.items()
        for name, digest in one["files"].items()
    ]
    predicate = {
        "generator": {"name": "llm-forget", "version": __version__},
        "requests": [{"id": one.id, "received": one.received} for one in requests],
        "certified": certified,
        "rows": rows.as_dict(),
        "models": {role: {key: value for key, value in one.items() if key != "files"} for role, one in models.items()},
        "files": dict(files),
        "previous": None if previous is None else {"sha256": previous},
        **sections,
    }
    return {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": PREDICATE_TYPE, "predicate": predicate}


def read_statement(payload: bytes) -> dict[str, Any]:
    """The statement in an envelope, with the parts that readers rely on.

    Raises:
        UserError: it is no statement of ours; the message continues a sentence.
    """
    found = parse_canonical(payload)
    if (
        not isinstance(found, dict)
        or found.get("_type") != STATEMENT_TYPE
        or found.get("predicateType") != PREDICATE_TYPE
    ):
        raise NotPlainJson(f"is no in-toto statement of the type {PREDICATE_TYPE}")
    predicate, subjects = found.get("predicate"), found.get("subject")
    mappings = ("files", "models", "rows", "generator", "numbers")
    if (
        not isinstance(predicate, dict)
        or not isinstance(subjects, list)
        or not all(isinstance(predicate.get(name), dict) for name in mappings)
    ):
        raise NotPlainJson("lacks parts that every statement has")
    return found


def subject_digests(statement: Mapping[str, Any], role: str) -> dict[str, str]:
    """Name → SHA-256 of the files of a model that is a subject."""
    try:
        found = {str(one["name"]): str(one["digest"]["sha256"]) for one in statement["subject"]}
    except (KeyError, TypeError):
        raise UserError("has a subject without a name or digest") from None
    return {name.partition("/")[2]: digest for name, digest in found.items() if name.partition("/")[0] == role}
