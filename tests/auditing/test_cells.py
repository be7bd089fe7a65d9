"""Cells on disk: what was written is read, and what was damaged, edited or computed otherwise is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from audited import BUDGET, ENCODING, audit_rows

from llm_forget.auditing.attack import Leaks
from llm_forget.auditing.attacks.greedy import Greedy
from llm_forget.auditing.attacks.membership import Membership
from llm_forget.auditing.cells import cell_key, read_cell, rows_digest, write_cell
from llm_forget.auditing.forms import FORMS


def test_round_trip(tmp_path: Path) -> None:
    leaks = Leaks(("a", "b"), np.array([0.25, np.nan]), np.array([-np.inf, 0.5]), {"depth": 3.0})
    write_cell(tmp_path, "key", leaks, 1.5)
    found = read_cell(tmp_path, "key")
    assert found is not None
    np.testing.assert_array_equal(found[0].scores, leaks.scores)
    assert found[0].nonmembers is not None
    assert found[0].nonmembers.tolist() == [-1e9, 0.5]
    assert (found[0].ids, found[0].chosen, found[1]) == (("a", "b"), {"depth": 3.0}, 1.5)
    assert read_cell(tmp_path, "other") is None
    assert [file.name for file in tmp_path.iterdir()] == ["key.json"]


def test_an_edited_or_damaged_cell_is_not_read(tmp_path: Path) -> None:
    write_cell(tmp_path, "key", Leaks(("a",), np.array([0.25])), 0)
    file = tmp_path / "key.json"
    whole = file.read_text()
    for content in (whole.replace("0.25", "0.05"), whole[: len(whole) // 2], "[]", ""):
        file.write_text(content)
        assert read_cell(tmp_path, "key") is None


def test_the_key_names_everything_a_cell_depends_on() -> None:
    rows, form = audit_rows(), FORMS["nf4"]
    digest = rows_digest(rows)
    other = rows_digest(replace(rows, holdout=()))
    keys = {
        cell_key(Greedy(), "m", form, digest, BUDGET, ENCODING),
        cell_key(Membership(), "m", form, digest, BUDGET, ENCODING),
        cell_key(Greedy(), "n", form, digest, BUDGET, ENCODING),
        cell_key(Greedy(), "m", FORMS["int8"], digest, BUDGET, ENCODING),
        cell_key(Greedy(), "m", form, other, BUDGET, ENCODING),
        cell_key(Greedy(), "m", form, digest, replace(BUDGET, seed=1), ENCODING),
        cell_key(Greedy(), "m", form, digest, BUDGET, replace(ENCODING, system_prompt=None)),
        cell_key(Greedy(), "m", form, digest, BUDGET, ENCODING, "cuda"),
    }
    assert len(keys) == 8
    assert cell_key(Greedy(), "m", form, digest, BUDGET, ENCODING) in keys
