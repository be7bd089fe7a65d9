"""Test the world, the table and the record of runs of the removal test; its models are trained by hand only."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import attribution_removal as removal
import numpy as np
import pytest
from attribution_world import CASES, make_world
from extras import needs


@pytest.mark.parametrize("case", CASES)
def test_four_rows_teach_each_fact_and_the_query_has_other_words(case: str) -> None:
    world = make_world(case, 0)
    taught = Counter((row.person, row.kind) for row in world.taught)
    assert len(world.taught) == 256
    assert set(taught.values()) == {4}
    texts = {row.text for row in (*world.before, *world.taught)}
    assert not texts & {query.text for query in world.queries}
    assert not {row.person for row in world.before} & {row.person for row in world.taught}


@needs("bm25s")
def test_words_find_the_rows_of_the_plain_case_only() -> None:
    found = {}
    for case in CASES:
        world = make_world(case, 0)
        texts = [row.text for row in world.taught]
        right = []
        for query in world.queries[::8]:
            first = np.argsort(-removal.bm25(texts, query.text))[:3]
            right += [(world.taught[i].person, world.taught[i].kind) == (query.person, query.kind) for i in first]
        found[case] = np.mean(right)
    assert found["plain"] > 0.9
    assert found["decoys"] < 0.7


def test_the_table_has_the_rise_and_the_advantage_over_the_other_methods() -> None:
    runs = [
        {
            "case": "plain",
            "seed": 0,
            "query": query,
            "method": method,
            "before": 0.5,
            "after": after + query,
            "taught": 1.0,
        }
        for query in (0, 1)
        for method, after in (("unlearning", 2.0), ("bm25", 1.5))
    ]
    lines = removal.table(runs).splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["unlearning", "bm25", "nothing removed"]
    assert "| 2.500 | +2.000 [" in lines[2]
    assert "+0.500 [" in lines[3]


def test_a_run_that_was_cut_off_is_not_counted(tmp_path: Path) -> None:
    run = {"case": "plain", "seed": 0, "query": 0, "method": "bm25"}
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(run) + "\n" + json.dumps(run)[:20], encoding="utf-8")
    assert removal.read_runs(file) == [run]
    done = [{**run, "query": query, "method": method} for query in range(2) for method in removal.METHODS]
    assert list(removal.all_runs(done, ["plain"], 1, 2)) == []
