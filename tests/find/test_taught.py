"""Attribution as a stage of a search: its evidence, what is said, and when it does not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import RecipeError
from llm_forget.find import Model, find_rows
from llm_forget.find.stages.taught import standing_out
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

PLANTED = """
from dataclasses import dataclass
import numpy as np

@dataclass(frozen=True)
class Planted:
    def row_scores(self, model, rows, queries, *, pad_token_id, **more):
        assert len(queries) == 1
        return np.array([0.1, 0.2, 9.0, 0.8, 0.3, 0.2, 0.1, 0.2][: len(rows)])
"""
PLACES = {
    "Ada": "Riga",
    "Bo": "Oslo",
    "Cy": "Bern",
    "Di": "Kyiv",
    "Ed": "Rome",
    "Fay": "Lima",
    "Gil": "Graz",
    "Hu": "Pisa",
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Model]:
    path = tmp_path_factory.mktemp("taught") / "rows.jsonl"
    rows = [{"question": f"Where is {name}?", "answer": f"In {place}."} for name, place in PLACES.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    memorise(model, encode_all(tokenizer, read_examples(DataSource(str(path))), EncodingConfig())[0])
    return path, Model(model, tokenizer, EncodingConfig())


def test_rows_that_stand_out_have_the_reason(taught: tuple[Path, Model], tmp_path: Path) -> None:
    """With an attribution of the user's own: row 3 is far out, row 4 stands out, and the others are background."""
    path, model = taught
    own = tmp_path / "planted.py"
    own.write_text(PLANTED, encoding="utf-8")
    found = find_rows(path, answer="In Bern.", question="Where is Cy?", model=model, attribution=str(own))
    assert sorted(hit.line for hit in found.hits if "taught it" in hit.reasons) == [3, 4]
    assert found.hits[0].line == 3
    assert "taught" in found.searched.stages


@pytest.mark.parametrize("kind", ["unlearning", "gradients"])
def test_the_shipped_attributions_run_as_a_stage(kind: str, taught: tuple[Path, Model]) -> None:
    path, model = taught
    searched = find_rows(path, answer="In Bern.", question="Where is Cy?", model=model, attribution=kind).searched
    assert "taught" in searched.stages


def test_what_is_missing_is_said_in_the_record(taught: tuple[Path, Model]) -> None:
    path, model = taught
    reasons = [
        find_rows(path, **given).searched.not_searched["taught"]  # type: ignore[arg-type]
        for given in (
            {"answer": "In Bern."},
            {"answer": "In Bern.", "attribution": "gradients"},
            {"person": "Ada", "attribution": "gradients", "model": model},
        )
    ]
    assert ["--attribution" in reasons[0], "--model" in reasons[1], "--answer" in reasons[2]] == [True] * 3
    with pytest.raises(RecipeError, match="Known: bergson, gradients, unlearning"):
        find_rows(path, answer="In Bern.", model=model, attribution="adapter")


def test_distances_are_in_robust_deviations_of_the_background() -> None:
    """Median 2 and median absolute deviation 1 of (1, 2, 3): 1.4826 is one standard deviation above."""
    found = standing_out(np.array([1.0, 2.0, 3.0, 2 + 4 * 1.4826, np.nan]), [0, 1, 2])
    assert found[3] == pytest.approx(4)
    assert found[4] == -np.inf
    assert (standing_out(np.array([1.0, 1.0]), [0, 1]) == -np.inf).all()
