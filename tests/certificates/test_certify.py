"""Certificates of a real run: made, verified by us and by another program, shown to people, and refused where they should be."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from certificate_mutations import count_accepted
from certified import Certifiable, make_certifiable
from commands import command
from memorised import FORGET, SECRET

from llm_forget.utils.files import write_record

pytest.importorskip("cryptography", reason="pip install 'llm-forget[evidence]'")

from llm_forget.certificates.keys import key_id, load_public

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certifiable:
    """Two certificates of one run, so that there is a chain; the second one has a merged model."""
    found = make_certifiable(tmp_path_factory.mktemp("certified"))
    merged = found.folder / "merged"
    assert command("merge", "--base", found.base, "--adapter", found.run / "adapter", "--to", merged).status == 0
    for request, more in (("R-1", ()), ("R-2", ("--merged", merged, "--received", "2026-11-02"))):
        done = command("certify", found.run, "--key", found.key, "--request", request, *more)
        assert done.status == 0, done.err
    return found


@pytest.fixture
def copied(made: Certifiable, tmp_path: Path) -> Certifiable:
    shutil.copytree(made.folder, tmp_path / "all")
    return Certifiable(tmp_path / "all")


def statement_of(made: Certifiable) -> dict[str, Any]:
    import base64

    envelope = json.loads((made.run / "certificate" / "statement.dsse.json").read_text())
    found: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))
    return found


def test_a_certificate_is_accepted_and_says_what_was_measured(made: Certifiable) -> None:
    started = time.monotonic()
    done = command(
        "verify", made.run, "--key", made.public, "--base", made.base, "--merged", made.folder / "merged", "--json"
    )
    assert time.monotonic() - started < 5
    checks = {one["check"]: one["ok"] for one in json.loads(done.out)["checks"]}
    assert done.status == 0
    assert checks == dict.fromkeys(["signature", "chain", "files", "base", "adapter", "merged", "figures"], True)
    said = statement_of(made)
    predicate = said["predicate"]
    numbers = predicate["numbers"]["custom"]
    stored = json.loads((made.folder / "runs" / "target" / "eval" / "custom.json").read_text())
    assert (
        numbers["before"]["forget.probability"]["value"] == stored["sets"]["forget"]["metrics"]["probability"]["value"]
    )
    assert (
        numbers["after"]["forget.probability"]["value"] < 0.2 < 0.8 < numbers["before"]["forget.probability"]["value"]
    )
    assert numbers["oracle"]["forget.probability"]["low"] is not None
    assert predicate["requests"] == [{"id": "R-2", "received": "2026-11-02"}]
    assert predicate["rows"]["count"] == len(FORGET)
    assert (predicate["audit"]["grade"]["level"], predicate["previous"] is not None) == ("E0", True)
    assert {one["name"].partition("/")[0] for one in said["subject"]} == {"base", "adapter", "merged"}


def test_securesystemslib_accepts_the_statement_file(made: Certifiable) -> None:
    pytest.importorskip("securesystemslib", reason="pip install 'llm-forget[dev]'")
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    public = load_public(made.public)
    envelope = Envelope.from_dict(json.loads((made.run / "certificate" / "statement.dsse.json").read_text()))
    theirs = SSlibKey.from_crypto(public, keyid=key_id(public))
    assert envelope.verify([theirs], 1).keys() == {key_id(public)}
    assert json.loads(envelope.payload)["_type"] == "https://in-toto.io/Statement/v1"


def test_no_random_change_is_accepted(made: Certifiable) -> None:
    """scripts/certificate_mutations.py makes a thousand."""
    tried, accepted = count_accepted(made.run, load_public(made.public), base=made.base, count=66, seed=1)
    assert len(tried) == 11
    assert min(tried.values()) >= 6
    assert accepted.total() == 0


def test_more_changes_are_not_accepted(copied: Certifiable) -> None:
    """A missing file, a new one, another key, a chain without the statement, and no statement at all."""
    assert command("verify", copied.run, "--key", copied.public).status == 0
    (copied.run / "adapter" / "extra.safetensors").write_bytes(b"x")
    done = command("verify", copied.run, "--key", copied.public)
    assert (done.status, "extra.safetensors is not one of" in done.out) == (1, True)
    (copied.run / "adapter" / "extra.safetensors").unlink()
    (copied.run / "env.json").rename(copied.folder / "env.json")
    assert "env.json is missing" in command("verify", copied.run, "--key", copied.public).out
    (copied.folder / "env.json").rename(copied.run / "env.json")
    assert command("keys", "new", "--to", copied.folder / "b.key", "--no-passphrase").status == 0
    assert "another key" in command("verify", copied.run, "--key", copied.folder / "b.key.pub").out
    chain = copied.folder / "runs" / "statements.jsonl"
    chain.write_bytes(chain.read_bytes().splitlines(keepends=True)[0])
    assert "is not in statements.jsonl" in command("verify", copied.run, "--key", copied.public).out
    chain.unlink()
    assert "not checked (follows" in command("verify", copied.run, "--key", copied.public).out
    assert command("verify", copied.folder, "--key", copied.public).status == 2


def test_one_row_can_be_shown_without_the_others(copied: Certifiable) -> None:
    row, other, proof = (copied.folder / name for name in ("row.jsonl", "other.jsonl", "proof.json"))
    row.write_text((copied.folder / "forget.jsonl").read_text().splitlines()[2] + "\n")
    other.write_text((copied.folder / "retain.jsonl").read_text().splitlines()[0] + "\n")
    verify = ("verify", copied.run, "--key", copied.public)
    assert command(*verify, "--row", row, "--write-proof", proof).status == 0
    assert command(*verify, "--row", other).status == 1
    for file in copied.folder.glob("runs/*.openings.json"):
        file.unlink()
    assert command(*verify, "--row", row).status == 1
    assert "1 row of the 4" in command(*verify, "--row", row, "--openings", proof).out
    assert command(*verify, "--row", other, "--openings", proof).status == 1


def test_a_slice_measured_again_agrees(made: Certifiable) -> None:
    given = ("--base", made.base, "--data-dir", made.folder, "--dtype", "float32", "--seed", "1")
    done = command("verify", made.run, "--key", made.public, "--replay", "40%", *given)
    found = re.search(r"custom: (\d+) scores of (\d+) rows measured again differ by (\S+)", done.out)
    assert done.status == 0
    assert found is not None
    assert (int(found[1]) > 20, int(found[2]), float(found[3]) <= 1e-4) == (True, 5, True)
    (made.folder / "other").mkdir(exist_ok=True)
    shutil.copytree(made.folder / "without" / "model", made.folder / "other" / "model", dirs_exist_ok=True)
    other = command(
        "verify", made.run, "--key", made.public, "--base", made.folder / "other" / "model", "--replay", "40%"
    )
    assert (other.status, "base: " in other.out) == (1, True)  # the wrong base is found before anything is measured


def test_pages_are_plain_and_hold_nothing_of_the_rows(made: Certifiable) -> None:
    folder = made.run / "certificate"
    person, auditor = ((folder / f"{name}.html").read_text() for name in ("person", "auditor"))
    for page in (person, auditor):
        assert "default-src 'none'" in page
        assert "<script" not in page
        assert "@media print" in page
    assert "1 file of training data with 10 entries was searched" in person
    assert "Other ways of asking" in person
    assert "old.jsonl" in auditor
    assert "adapter/adapter_model.safetensors" in auditor
    text = "".join(path.read_text(errors="replace") for path in folder.rglob("*.*") if path.is_file())
    text += json.dumps(statement_of(made)) + (made.folder / "runs" / "statements.jsonl").read_text()
    words = [
        "/home/office",
        "a" * 16,
        SECRET,
        *(question for question, _ in FORGET),
        *(answer for _, answer in FORGET),
        str(made.folder),
    ]
    assert [word for word in words if word in text] == []


def edited(path: Path, **changes: Any) -> None:
    write_record(path, {**json.loads(path.read_text()), **changes})


def test_no_statement_about_a_run_that_did_not_change_the_model(copied: Certifiable) -> None:
    """Zero factors; the target's scores; a base with other weights; edited results; another adapter than the measured one."""
    import torch
    from safetensors.torch import load_file, save_file

    from llm_forget.utils.files import folder_digest

    certify = ("certify", copied.run, "--key", copied.key, "--request", "R-3")
    weights = copied.run / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    tensors = {name: torch.zeros_like(one) if "lora_B" in name else one for name, one in load_file(weights).items()}
    save_file(tensors, weights)
    assert "is not the one that the run wrote" in command(*certify).err  # swapped after the run
    edited(copied.run / "result.json", adapter_digest=folder_digest(copied.run / "adapter"))
    result = json.loads((copied.run / "eval" / "custom.json").read_text())
    edited(
        copied.run / "eval" / "custom.json", model={**result["model"], "adapter": folder_digest(copied.run / "adapter")}
    )
    done = command(*certify)
    assert (done.status, "changes nothing" in done.err) == (2, True)
    weights.write_bytes(before)
    assert "measured another adapter" in command(*certify).err or "is not the one" in command(*certify).err

    shutil.rmtree(copied.run)
    shutil.copytree(copied.folder / "runs" / "target" / "eval", copied.run / "eval")
    assert "no unlearning run" in command(*certify).err


def test_a_run_measured_as_its_target_is_refused(copied: Certifiable) -> None:
    """The scores of the target under the name of the run."""
    own = json.loads((copied.run / "eval" / "custom.json").read_text())
    shutil.rmtree(copied.run / "eval")
    shutil.copytree(copied.folder / "runs" / "target" / "eval", copied.run / "eval")
    edited(copied.run / "eval" / "custom.json", model=own["model"])
    done = command("certify", copied.run, "--key", copied.key, "--request", "R-3")
    assert (done.status, "every score of the forget rows is as before" in done.err) == (2, True)


def test_other_things_that_cannot_be_certified(copied: Certifiable, tmp_path: Path) -> None:
    certify = ("certify", copied.run, "--key", copied.key, "--request", "R-3")
    few = tmp_path / "few.jsonl"
    few.write_text((copied.folder / "forget.jsonl").read_text().splitlines()[0] + "\n")
    assert "are not the 4 of the run" in command(*certify, "--forget", few).err
    assert "is not the base of the run" in command(*certify, "--base", copied.folder / "without" / "model").err
    assert "is no date" in command(*certify, "--received", "soon").err
    assert "is not" in command(*certify, "--merged", copied.base).err
    assert command("keys", "new", "--to", tmp_path / "b.key", "--no-passphrase").status == 0
    assert "another key" in command("certify", copied.run, "--key", tmp_path / "b.key", "--request", "R-3").err
    assert command("verify", copied.run, "--key", copied.public).status == 0  # nothing of these tries is left


def test_shredding_is_recorded_and_certified(copied: Certifiable) -> None:
    checkpoint = copied.folder / "runs" / "npo.checkpoints" / "phase-1" / "step-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tensors.safetensors").write_bytes(b"weights")
    (checkpoint.parent / "thesis.txt").write_text("mine")
    cache = list((copied.run / "eval" / "cache").rglob("*.safetensors"))
    assert cache
    assert "would remove npo.checkpoints: 1 files" in command("shred", copied.run, "--dry-run").out
    assert (checkpoint / "tensors.safetensors").exists()
    done = command("shred", copied.run)
    assert done.status == 0
    assert "make a new one" in done.out
    assert [one for one in (checkpoint, *cache) if one.exists()] == []
    assert (checkpoint.parent / "thesis.txt").read_text() == "mine"
    assert command("verify", copied.run, "--key", copied.public).status == 1
    assert command("certify", copied.run, "--key", copied.key, "--request", "R-3").status == 0
    assert command("verify", copied.run, "--key", copied.public).status == 0
    said = statement_of(copied)["predicate"]["shredded"]
    assert [one["what"] for one in said["removed"]] == ["npo.checkpoints", "eval/cache"]
    assert "the model before unlearning" in [one["what"] for one in said["remains"]]
    assert "Working files" in (copied.run / "certificate" / "person.html").read_text()
