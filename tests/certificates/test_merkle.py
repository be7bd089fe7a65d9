"""The commitment to rows: RFC 9162's tree, proofs for one row, and nothing that reveals the others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from llm_forget.certificates.canonical import canonical
from llm_forget.certificates.merkle import Proof, commit, read_openings, row_bytes
from llm_forget.data.examples import Example, Message, example_id

SECRET = bytes(range(32))


def rows(count: int) -> list[bytes]:
    return [b"row %d" % index for index in range(count)]


def test_three_rows_by_hand() -> None:
    """Root of three leaves: H(1 ‖ H(1 ‖ a ‖ b) ‖ c)."""
    made = commit(rows(3), SECRET)
    a, b, c = made.leaves
    pair = hashlib.sha256(b"\x01" + a + b).digest()
    assert made.commitment.root == hashlib.sha256(b"\x01" + pair + c).hexdigest()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 13])
def test_each_row_and_only_it_has_a_proof(count: int) -> None:
    made = commit(rows(count), SECRET)
    for index, row in enumerate(rows(count)):
        proof = made.proof(row)
        assert proof is not None
        assert proof.index == index
        assert proof.root(row) == made.commitment.root
        assert proof.root(b"another row") != made.commitment.root
        shorter = Proof(proof.index, proof.count, proof.salt, proof.path[:-1])
        assert count == 1 or shorter.root(row) != made.commitment.root
    assert made.proof(b"another row") is None


def test_salts_hide_equal_rows_and_change_with_the_secret() -> None:
    made = commit([b"same", b"same"])
    assert made.leaves[0] != made.leaves[1]
    assert commit([b"same", b"same"]).commitment != made.commitment
    assert commit([b"same", b"same"], made.secret).commitment == made.commitment


def test_files_hold_no_text_and_a_proof_opens_one_row_only(tmp_path: Path) -> None:
    turns = (Message("user", "Where is Ada?"),)
    example = Example(example_id(turns, "In Riga."), turns, "In Riga.", source="a.jsonl:1", subject="Ada")
    made = commit([row_bytes(example), b"other"])
    files = {"openings": made.as_dict(), "proof": made.proof(row_bytes(example)).as_dict()}  # type: ignore[union-attr]
    for name, values in files.items():
        (tmp_path / name).write_bytes(canonical(values))
        assert "Riga" not in (tmp_path / name).read_text()
    assert read_openings(tmp_path / "openings") == made
    proof = read_openings(tmp_path / "proof")
    assert isinstance(proof, Proof)
    assert proof.root(row_bytes(example)) == made.commitment.root
    assert made.secret.hex() not in json.dumps(files["proof"])
