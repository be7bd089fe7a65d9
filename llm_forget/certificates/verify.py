"""Check a certificate without network, torch or model: signature, digests, chain, figures, and whether a row is covered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget._version import __version__
from llm_forget.certificates.canonical import canonical
from llm_forget.certificates.chain import CHAIN_NAME, chain_problem, read_chain
from llm_forget.certificates.contents import contents, grade_problem, read_evidence
from llm_forget.certificates.envelope import Envelope, read_envelope, signature_problem
from llm_forget.certificates.manifest import (
    FOLDER_NAME,
    STATEMENT_NAME,
    covered_files,
    differences,
    model_files,
)
from llm_forget.certificates.merkle import Openings, Proof, read_openings
from llm_forget.certificates.statement import read_statement, subject_digests
from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson, read_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_SHOWN = 5  # differences that are named
# Sections with figures, which every version computes alike; the others may be worded differently by another version.
_FIGURES = ("numbers", "audit", "run")


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        ok: True, False, or None if it was not checked.
        text: the result in a sentence.
    """

    name: str
    ok: bool | None
    text: str


@dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
        checks: in order; the first that fails can end it.
        statement: the statement; None if its signature does not hold, so that nothing of it is believed.
    """

    checks: tuple[Check, ...]
    statement: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def accepted(self) -> bool:
        """Whether no check failed."""
        return all(one.ok is not False for one in self.checks) and self.statement is not None


@dataclass(frozen=True)
class Places:
    """Where the things are that a certificate names.

    Attributes:
        base: folder of the base; None to leave it unchecked.
        merged: folder of the merged model; None to leave it unchecked.
        chain: the chain; by default ``statements.jsonl`` next to the run, if it is there.
    """

    base: Path | None = None
    merged: Path | None = None
    chain: Path | None = None


def verify(run: Path, keys: Sequence[Ed25519PublicKey], places: Places | None = None) -> Report:
    """Check the certificate of a run.

    Args:
        run: the run folder, its certificate folder, or the statement in it.
        keys: public keys that are trusted.
        places: where base, merged model and chain are.

    Raises:
        UserError: there is no statement.
    """
    file = statement_file(run)
    folder = file.parent.parent
    try:
        content = read_text(file).encode()
        envelope = read_envelope(content.removesuffix(b"\n"))
        if not content.endswith(b"\n"):
            raise NotPlainJson("is cut")
        if problem := signature_problem(envelope, keys):
            raise NotPlainJson(problem)
        statement = read_statement(envelope.payload)
    except NotPlainJson as error:
        return Report((Check("signature", False, f"the statement {error}"),))
    signers = ", ".join(name[:12] for name, _ in envelope.signatures)
    checks = [Check("signature", True, f"valid, of the key {signers}")]
    checks += _chain(envelope, statement, keys, folder, places or Places())
    checks += _digests(statement, folder, places or Places())
    if all(one.ok is not False for one in checks):  # the files are those that were certified, so they can be read
        checks += _figures(statement, folder)
    return Report(tuple(checks), statement)


def statement_file(run: Path) -> Path:
    """The statement of a run, given by any of its folders.

    Raises:
        UserError: there is none.
    """
    for file in (run / FOLDER_NAME / STATEMENT_NAME, run / STATEMENT_NAME, run):
        if file.is_file() and file.name == STATEMENT_NAME:
            return file.resolve()
    raise UserError(f"{run} holds no {FOLDER_NAME}/{STATEMENT_NAME}; `llm-forget certify` makes it")


def check_row(report: Report, rows: Sequence[bytes], openings: Path) -> tuple[Check, Proof | None]:
    """Check that rows are covered by a statement.

    Args:
        report: of the statement.
        rows: from ``row_bytes``.
        openings: the run's openings, or the proof for one row.

    Returns:
        The check, and the proof if there is one row.
    """
    if report.statement is None:
        return Check("row", False, "the statement does not hold, so nothing is covered"), None
    stated = report.statement["predicate"]["rows"]
    opened = read_openings(openings)
    if isinstance(opened, Proof):
        proofs: list[Proof | None] = [opened] * len(rows)
    else:
        if opened.commitment.as_dict() != stated:
            return Check("row", False, f"{openings.name} is not of this statement"), None
        proofs = [opened.proof(row) for row in rows]
    good = [
        one is not None and one.count == stated["count"] and one.root(row) == stated["root"]
        for one, row in zip(proofs, rows, strict=True)
    ]
    if not all(good):
        return Check("row", False, f"{len(good) - sum(good)} of {len(good)} rows are not covered"), None
    text = f"{len(good)} row{'s' if len(good) > 1 else ''} of the {stated['count']} that were to be forgotten"
    return Check("row", True, text), proofs[0] if len(proofs) == 1 else None


def _chain(
    envelope: Envelope, statement: Mapping[str, Any], keys: Sequence[Ed25519PublicKey], folder: Path, places: Places
) -> list[Check]:
    file = places.chain or folder.with_name(CHAIN_NAME)
    if not file.is_file():
        if places.chain is not None:
            return [Check("chain", False, f"{file} does not exist")]
        previous = statement["predicate"].get("previous")
        said = "the first statement" if previous is None else f"follows {str(previous.get('sha256'))[:12]}"
        return [Check("chain", None, f"not checked ({said}); give the signer's chain with --chain")]
    try:
        chain = read_chain(file)
        problem = chain_problem(chain, keys)
    except UserError as error:
        return [Check("chain", False, str(error))]
    if problem:
        return [Check("chain", False, f"{file.name} {problem}")]
    places_of = [number for number, one in enumerate(chain, 1) if one.digest == envelope.digest]
    if not places_of:
        return [Check("chain", False, f"the statement is not in {file.name}")]
    return [Check("chain", True, f"statement {places_of[0]} of {len(chain)}, unbroken")]


def _digests(statement: Mapping[str, Any], folder: Path, places: Places) -> list[Check]:
    try:
        found = differences(statement["predicate"]["files"], covered_files(folder))
    except OSError as error:
        return [Check("files", False, f"{error.filename}: {error.strerror}")]
    count = len(statement["predicate"]["files"])
    checks = [Check("files", not found, _listed(found) or f"{count} files are as certified")]
    own = {"adapter": folder / "adapter", "model": folder / "model"}
    given = {"base": places.base, "merged": places.merged}
    for role in ("base", "adapter", "model", "merged"):
        stated = subject_digests(statement, role)
        if not stated:
            continue
        place = own.get(role) or given[role]
        if place is None:
            checks.append(Check(role, None, f"not checked; give its folder with --{role}"))
            continue
        if not place.is_dir():
            checks.append(Check(role, False, f"{place} is no folder"))
            continue
        differ = differences(stated, model_files(place))
        checks.append(Check(role, not differ, _listed(differ) or f"{len(stated)} files are as certified"))
    return checks


def _figures(statement: Mapping[str, Any], folder: Path) -> list[Check]:
    predicate = statement["predicate"]
    try:
        found = read_evidence(folder)
        again = contents(found)
        if problem := grade_problem(found.audit):
            raise UserError(f"the audit {problem}")
    except UserError as error:
        return [Check("figures", False, str(error))]
    same = predicate["generator"].get("version") == __version__
    compared = [name for name in again if same or name in _FIGURES]
    wrong = [name for name in compared if canonical(again[name]) != canonical(predicate.get(name))]
    if wrong:
        return [Check("figures", False, f"the files give something else than the statement says: {', '.join(wrong)}")]
    count = sum(len(role) for suite in predicate["numbers"].values() for name, role in suite.items() if name != "rows")
    made = "" if same else f"; its texts are of version {predicate['generator'].get('version')} and not compared"
    return [Check("figures", True, f"{count} figures follow from the files{made}")]


def _listed(lines: Sequence[str]) -> str:
    more = len(lines) - _SHOWN
    return "; ".join(lines[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


__all__ = ["Check", "Openings", "Places", "Report", "check_row", "statement_file", "verify"]
