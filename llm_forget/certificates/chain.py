"""The chain of statements: one envelope a line, each of which names the digest of the one before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.certificates.envelope import Envelope, read_envelope, signature_problem
from llm_forget.errors import UserError
from llm_forget.utils.lock import locked
from llm_forget.utils.safe_json import NotPlainJson, read_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

CHAIN_NAME = "statements.jsonl"
_MOST = 256 << 20  # bytes


@contextmanager
def appending(path: Path) -> Iterator[list[Envelope]]:
    """Context in which only this process appends to a chain. Yields the statements so far.

    A last line without an end, which a killed process leaves, is no statement and is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, "--chain"):
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with path.open("r+b") as stream:
                    stream.truncate(whole)
        yield read_chain(path)


def append(path: Path, envelope: Envelope) -> None:
    """Append a statement and sync it to disk; call it within ``appending``."""
    with path.open("ab") as stream:
        stream.write(envelope.content() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_chain(path: Path) -> list[Envelope]:
    """The statements of a chain; empty if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        text = read_text(path, _MOST)
    except NotPlainJson as error:
        raise UserError(f"{path} {error}") from None
    if not text.endswith("\n"):
        raise UserError(f"{path} ends in the middle of a line: it was cut")
    found = []
    for number, line in enumerate(text[:-1].split("\n"), 1):
        try:
            found.append(read_envelope(line.encode()))
        except NotPlainJson as error:
            raise UserError(f"{path}:{number} {error}") from None
    return found


def chain_problem(chain: Sequence[Envelope], keys: Sequence[Ed25519PublicKey]) -> str:
    """What is wrong with a chain: the end of a sentence, or nothing."""
    before: str | None = None
    for number, one in enumerate(chain, 1):
        if problem := signature_problem(one, keys):
            return f"has a statement ({number}) that {problem}"
        if previous_of(one) != before:
            return f"is broken: statement {number} does not name the one before it"
        before = one.digest
    return ""


def previous_of(envelope: Envelope) -> str | None:
    """The digest of the statement before; None for the first one."""
    try:
        found = json.loads(envelope.payload)["predicate"]["previous"]
        return None if found is None else str(found["sha256"])
    except (ValueError, KeyError, TypeError):
        return ""
