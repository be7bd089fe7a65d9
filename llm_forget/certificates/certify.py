"""Make the certificate of a run: check what is claimed, sign it, and write statement, pages and openings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.certificates.canonical import canonical
from llm_forget.certificates.chain import CHAIN_NAME, append, appending, chain_problem
from llm_forget.certificates.changed import check_adapter, check_measured, check_merged, check_model
from llm_forget.certificates.contents import Evidence, contents, grade_problem, read_evidence
from llm_forget.certificates.envelope import Envelope, sign
from llm_forget.certificates.keys import write_private
from llm_forget.certificates.manifest import CONTROLS, FOLDER_NAME, STATEMENT_NAME, covered_files, model_files
from llm_forget.certificates.merkle import Commitment, commit, row_bytes
from llm_forget.certificates.pages import write_pages
from llm_forget.certificates.statement import Request, make_statement
from llm_forget.data.examples import DataSource, Example, read_examples
from llm_forget.data.readers import locate
from llm_forget.errors import UserError
from llm_forget.evaluation.results import open_results, write_results
from llm_forget.runs import Run, load_run
from llm_forget.utils.build import build
from llm_forget.utils.digests import json_digest, weights_digest
from llm_forget.utils.files import file_digest, folder_digest, new_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Certified:
    """A certificate that was made.

    Attributes:
        folder: its folder in the run.
        chain: the chain that the statement was appended to.
        openings: the private file that opens the commitment to the rows.
        envelope: the signed statement.
        statement: its content.
    """

    folder: Path
    chain: Path
    openings: Path
    envelope: Envelope = field(repr=False)
    statement: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Given:
    """What a certificate is made from besides the run.

    Attributes:
        requests: the requests.
        base: folder of the base; by default the one in the run's recipe.
        merged: folder of the base with the adapter merged into it, if that is what is served.
        forget: the files of the rows to forget; by default the one in the run's recipe.
        controls: role (target, oracle, sham) → its run folder.
        chain: the chain; by default ``statements.jsonl`` next to the run.
        secret: secret of the salts; new by default. A ledger gives its own, so that its commitment is the statement's.
    """

    requests: Sequence[Request]
    base: Path | None = None
    merged: Path | None = None
    forget: Sequence[DataSource] = ()
    controls: Mapping[str, Path] = field(default_factory=dict)
    chain: Path | None = None
    secret: bytes | None = field(default=None, repr=False)


def certify(folder: Path, key: Ed25519PrivateKey, given: Given) -> Certified:
    """Make the certificate of a run, in its folder.

    Args:
        folder: the run folder, with results on a forget set.
        key: signs the statement.
        given: the requests, and where things are.

    Raises:
        UserError: the run did not change its model, was edited, was measured with another model or not at all, or its rows or
            its base are not those that are here.
    """
    run = load_run(folder)
    if run.kind != "unlearn":
        raise UserError(f"{folder} is no unlearning run; a statement is about a run that forgot something")
    if run.problems:
        raise UserError(f"{folder}: {'; '.join(run.problems[:3])}")
    if not any(one.forget_sets for one in run.evaluations.values()):
        raise UserError(f"{folder} was not evaluated on a forget set; run `llm-forget evaluate` on it first")
    rows = commit([row_bytes(one) for one in _forget_rows(run, given.forget)], given.secret)
    models = _models(run, given)
    openings = folder.resolve().with_name(f"{folder.resolve().name}.{rows.commitment.root[:12]}.openings.json")
    chain = given.chain or folder.resolve().with_name(CHAIN_NAME)
    with appending(chain) as before, new_folder(folder / FOLDER_NAME) as new:
        if problem := chain_problem(before, [key.public_key()]):
            raise UserError(f"{chain} {problem}; name another file with --chain to begin a new chain")
        copied = new / "controls"
        for role, control in given.controls.items():
            _copy_control(role, control, run, copied / role)
        found = read_evidence(folder, copied)
        _check(found)
        statement = make_statement(
            requests=given.requests,
            certified=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            models=models,
            rows=rows.commitment,
            sections=contents(found),
            files=_files(folder, copied),
            previous=before[-1].digest if before else None,
        )
        envelope = sign(canonical(statement), key)
        (new / STATEMENT_NAME).write_bytes(envelope.content() + b"\n")
        write_pages(statement, envelope, new)
        openings.unlink(missing_ok=True)  # the same rows with the same salts, of an earlier try
        write_private(openings, canonical(rows.as_dict()) + b"\n")
        append(chain, envelope)
    return Certified(folder / FOLDER_NAME, chain, openings, envelope, statement)


def forget_commitment(rows: Sequence[Example], secret: bytes) -> Commitment:
    """The commitment to rows with a given secret."""
    return commit([row_bytes(one) for one in rows], secret).commitment


def _files(folder: Path, controls: Path) -> dict[str, str]:
    """The covered files of the run, with the controls of the certificate that is being made."""
    kept = {name: digest for name, digest in covered_files(folder).items() if not name.startswith(f"{CONTROLS}/")}
    copied = {path.relative_to(controls).as_posix(): path for path in sorted(controls.rglob("*")) if path.is_file()}
    return {**kept, **{f"{CONTROLS}/{name}": file_digest(path) for name, path in copied.items()}}


def _check(found: Evidence) -> None:
    check_measured(found.suites, found.controls.get("target", {}))
    if problem := grade_problem(found.audit):
        raise UserError(f"the audit {problem}; audit the run again")


def _forget_rows(run: Run, given: Sequence[DataSource]) -> list[Example]:
    """The forget rows, which must be those of the run."""
    sources = list(given)
    if not sources:
        section = (run.recipe.get("data") or {}).get("forget")
        if not isinstance(section, dict):
            raise UserError("the run's recipe names no file of forget rows; give it with --forget")
        sources = [build(DataSource, section, "the run's recipe, data.forget")]
    for one in sources:
        if locate(one.path) is None:
            raise UserError(f"the forget rows, {one.path}, are not here; give their file with --forget")
    rows = [row for one in sources for row in read_examples(one)]
    stated = (run.result.get("data_digests") or {}).get("forget")
    if json_digest(sorted(row.id for row in rows)) != stated:
        raise UserError(
            f"the {len(rows)} forget rows given are not the {run.result.get('forget_rows')} of the run; give all of its files, "
            "as they were"
        )
    return rows


def _models(run: Run, given: Given) -> dict[str, dict[str, Any]]:
    """Role → files and digests of base, adapter or model, and merged model."""
    base = given.base or Path(str((run.recipe.get("model") or {}).get("name", "")))
    if not base.is_dir():
        raise UserError(f"the base, {base}, is no folder here; give it with --base")
    if (run.recipe.get("model") or {}).get("adapter") and "composed" not in run.result:
        raise UserError(
            "the run started from a base with an adapter, so its own adapter is only the last part of what is served; compose "
            "both, or use `llm-forget requests forget`"
        )
    digest, stated = weights_digest(base), run.result.get("base_digest")
    if stated is not None and stated != digest:
        raise UserError(f"{base} is not the base of the run (stated {stated[:12]}, found {digest[:12]}); give --base")
    models = {"base": {"weights": digest, "checked": stated is not None, "files": model_files(base)}}
    adapter, model = run.path / "adapter", run.path / "model"
    if adapter.is_dir():
        models["adapter"] = {**check_adapter(adapter, base), **_described(adapter)}
    elif model.is_dir():
        check_model(model, base)
        models["model"] = {"weights": weights_digest(model), **_described(model)}
    else:
        raise UserError(f"{run.path} holds neither adapter/ nor model/, so there is nothing to make a statement about")
    if given.merged is not None:
        if not adapter.is_dir():
            raise UserError("--merged is for a run with an adapter; this run has a model of its own")
        check_merged(given.merged, adapter, base)
        check_model(given.merged, base)
        models["merged"] = {"weights": weights_digest(given.merged), **_described(given.merged)}
    return models


def _described(folder: Path) -> dict[str, Any]:
    return {"folder": folder_digest(folder), "files": model_files(folder)}


def _copy_control(role: str, control: Path, run: Run, target: Path) -> None:
    """Copy a control's results without generated texts, for the suites of the run."""
    found = load_run(control)
    if found.problems:
        raise UserError(f"the {role}, {control}: {'; '.join(found.problems[:3])}")
    for name in run.evaluations:
        stored = found.evaluations.get(name)
        if stored is None or not stored.raw["sets"]:
            continue
        whole = stored.with_examples()
        for one in whole["sets"].values():
            one["examples"] = {
                row: {label: value for label, value in scores.items() if label != "generated"}
                for row, scores in one["examples"].items()
            }
        write_results({**whole, "controls": {}}, target / stored.path.name)
        open_results(target / stored.path.name)
    if not target.is_dir():
        raise UserError(f"the {role}, {control}, has no results on a suite of the run; evaluate it on the same suite")
