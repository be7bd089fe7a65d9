"""`llm-forget audit` on a tiny run, from files to the page: forms, cells that are kept, kills, and no text of the data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
from audited import audit_rows, faint_adapter, subject_of, write_audited
from commands import command
from openai_server import serving
from served_audits import check_verdicts, served_attacks

from llm_forget.auditing.artefact import artefact_of
from llm_forget.auditing.attacks.greedy import Greedy
from llm_forget.auditing.attacks.membership import Membership
from llm_forget.auditing.forms import FORMS as EVERY_FORM
from llm_forget.auditing.results import read_audit

pytestmark = pytest.mark.slow

FORMS = "merged_fp32,adapter_fp32,int4_rtn"
OPTIONS = ("--attacks", "greedy,membership", "--forms", FORMS)
CELLS, OTHERS = 6, 4  # of the run; of target and oracle, which have no adapter form


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a target, an oracle, and a run whose adapter forgot nothing."""
    return write_audited(tmp_path_factory.mktemp("audit"))


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Path:
    """A copy without cells."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def audit(folder: Path, run: str = "run", *more: str) -> Any:
    done = command("audit", folder / run, "--base", folder / "target" / "model", *OPTIONS, *more)
    assert done.status == 0, done.err
    return done


def cells(folder: Path) -> list[Path]:
    return sorted((folder / "audit" / "cells").glob("*.json"))


def test_an_audit_says_what_is_left_and_writes_no_text(there: Path) -> None:
    done = audit(there)
    assert "not forgotten: the plain question brings the answers back" in done.out
    assert "int4_rtn: the rounded change has a cosine of 0." in done.out, "the forecast"
    found = read_audit(there / "run")
    assert found is not None
    assert found.problem == ""
    assert (found.attacks, found.forms) == (["greedy", "membership"], FORMS.split(","))
    plain = found.cell("greedy", "merged_fp32")
    assert plain is not None
    assert plain.leaks
    assert plain.controls["oracle"] < 0.3 < 0.8 < plain.controls["target"]
    assert [len(cells(there / role)) for role in ("run", "target", "oracle")] == [CELLS, OTHERS, OTHERS]
    adapted = found.cell("greedy", "adapter_fp32")
    assert adapted is not None
    assert adapted.controls == plain.controls
    written = [
        file for file in there.rglob("*") if file.is_file() and ("audit" in file.parts[-2:] or "cells" in file.parts)
    ]
    texts = {file: file.read_text() for file in written}
    assert len(texts) == CELLS + 2 * OTHERS + 1
    for row in audit_rows(16).forget:
        word = row.answer.split()[-1].strip(".")
        assert not [file for file, text in texts.items() if word in text]
    page = command("report", there / "run")
    assert page.status == 0, page.err
    html = (there / "run" / "report.html").read_text()
    assert "Does it stay forgotten?" in html
    assert "tone-left-" in html
    assert command("compare", there, "--to", there / "all.html").status == 0
    assert "Does it stay forgotten?" in (there / "all.html").read_text()


def test_known_cells_are_not_computed_again(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit(there)
    shutil.copytree(there / "run", there / "again", ignore=shutil.ignore_patterns("audit"))
    faint_adapter(there, "again", r=2)
    calls = []
    attack = Greedy.attack
    monkeypatch.setattr(Greedy, "attack", lambda self, *given: calls.append(given[0]) or attack(self, *given))
    audit(there)
    assert not calls
    audit(there, "again")
    assert len(calls) == 3, "target and oracle were attacked already"
    cells(there / "run")[0].unlink()
    cells(there / "run")[-1].write_text("{")
    audit(there)
    assert len(cells(there / "run")) == CELLS


def test_a_kill_loses_at_most_one_cell(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child is killed inside its fourth attack. Three cells are on disk, and the next audit computes the others."""
    attack = Membership.attack
    child = os.fork()
    if child == 0:
        calls = []

        def dies(self: Membership, *given: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), SIGKILL)
            return attack(self, *given)

        monkeypatch.setattr(Membership, "attack", dies)
        audit(there)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -SIGKILL
    kept = [file for role in ("run", "target", "oracle") for file in cells(there / role)]
    assert len(kept) == 3
    seen = []
    monkeypatch.setattr(Membership, "attack", lambda self, *given: seen.append(1) or attack(self, *given))
    audit(there)
    assert len(seen) == 7 - 1


def test_a_server_gives_the_verdicts_of_this_process(there: Path) -> None:
    """Every attack that a server allows, on the run behind a server and on its files."""
    options = ("--forms", "merged_fp32", "--attacks", ",".join(served_attacks()), "--rows", "8")
    audit(there, "run", *options)
    model, tokenizer = artefact_of(there / "run")[0].load(EVERY_FORM["merged_fp32"])
    with serving(subject_of(model, tokenizer)) as (url, _):
        audit(there, "run", *options, "--endpoint", url, "--served-model", "served", "--to", there / "served")
    check_verdicts(there / "served", read_audit(there / "run"), within=1e-3)


def test_an_attack_that_fails_is_named_without_its_message(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Greedy, *given: Any) -> Any:
        raise ZeroDivisionError("Riga")

    monkeypatch.setattr(Greedy, "attack", fails)
    done = audit(there)
    assert "greedy on merged_fp32, adapter_fp32, int4_rtn: failed with ZeroDivisionError" in done.out
    assert "Riga" not in done.out + done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forms", "fp8"], "unknown form fp8"),
        (["--attacks", "gredy"], "did you mean 'greedy'"),
        (["--endpoint", "http://localhost:1"], "belong together"),
        (["--rows", "1"], "give 2 or more"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str, made: Path) -> None:
    done = command("audit", made / "run", *options)
    assert done.status == 2
    assert message in done.err
