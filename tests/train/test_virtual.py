"""Test virtual neighbours: their questions, their answers, and what they change in a run."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from memorised import write_memorised
from rich.console import Console
from test_method_runs import recipe_of
from townspeople import FORGET, RETAIN
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_forget.data.encode import EncodingConfig
from llm_forget.data.entities import find_names
from llm_forget.data.examples import DataSource, Example, read_examples
from llm_forget.errors import DataError, RecipeError
from llm_forget.testing import tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.train.virtual import StandIns, virtual_rows

NEIGHBOURS = {"name": "virtual_neighbours", "weight": 8.0, "questions": 12, "max_new_tokens": 12, "known_names": 1.0}


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memorised(tmp_path_factory.mktemp("people"), {"forget": FORGET, "retain": RETAIN})


def rows_of(people: Path, name: str) -> list[Example]:
    return read_examples(DataSource(str(people / f"{name}.jsonl")))


def made(people: Path, said: list[str], **changes: Any) -> list[str]:
    settings: dict[str, Any] = {"seed": 0, "most": 12, "known_names": 1.0, "max_new_tokens": 12, **changes}
    model = AutoModelForCausalLM.from_pretrained(people / "model")
    tokenizer = AutoTokenizer.from_pretrained(people / "model")
    sets = (rows_of(people, "forget"), rows_of(people, "retain"))
    rows = virtual_rows(*sets, model, tokenizer, EncodingConfig(), say=said.append, **settings)
    return [tokenizer.decode(row.input_ids) for row in rows]


def test_the_questions_are_about_others_and_the_answers_are_the_models_own(people: Path) -> None:
    """A question about a name of the retain rows is a retain row here, since all rows have one wording."""
    said: list[str] = []
    texts = made(people, said)
    assert texts == made(people, []), "the seed decides"
    assert len(texts) == len(set(texts)), "no question twice"
    known = dict(zip(("Di Kerr", "Ed Noll", "Fi Penn", "Gus Rand"), ("Rome", "Kyiv", "Lund", "Graz"), strict=True))
    for text in texts:
        asked = [name for name in known if name in text]
        assert len(asked) == 1
        assert f"In {known[asked[0]]}." in text
    assert not any(name in text + said[0] for text in texts for name in ("Ada", "Voss", "Bo Lind", "Cy", "Marr"))
    assert f"{len(texts)} questions about other names, from 3 of 3 forget rows" in said[0]


def test_a_question_that_recalls_the_forget_answer_is_left_out(tmp_path: Path) -> None:
    """This model knows one name only, and gives its answer to every name."""
    folder = tmp_path
    write_memorised(folder, {"forget": [FORGET[0]]})
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    with pytest.raises(DataError, match="gives the forget answer to all 4 forget questions") as error:
        virtual_rows(
            rows_of(folder, "forget"), [], model, tiny_tokenizer(), EncodingConfig(), seed=0, most=4, known_names=0.5,
            max_new_tokens=12,
        )  # fmt: skip
    assert "Ada" not in str(error.value)


def test_stand_ins_have_the_length_of_the_name_and_are_no_forget_names() -> None:
    (name,) = find_names([Example("id", "Is Alexandrina Featherstone here?", "No.")])
    assert name is not None
    tokenizer = tiny_tokenizer()

    def length(text: str) -> int:
        return len(tokenizer(f" {text}", add_special_tokens=False)["input_ids"])

    drawn = [
        StandIns({name.full}, ["Bo", name.full], share, tokenizer).draw(name, random.Random(3)) for share in (0, 1)
    ]
    assert len(drawn[0].split()) == 2
    assert abs(length(drawn[0]) - length(name.full)) <= 6
    assert drawn[1] == "Bo"


def test_names_that_cannot_be_found_are_refused_in_words(tmp_path: Path, memorised_folder: Path) -> None:
    recipe = recipe_of(memorised_folder, tmp_path, method={"name": "npo"}, retain={"more": [NEIGHBOURS]})
    things = memorised_folder / "retain.jsonl"  # "What is snow?"
    object.__setattr__(recipe.data, "forget", DataSource(str(things)))
    object.__setattr__(recipe.data, "retain", DataSource(str(memorised_folder / "forget.jsonl")))
    with pytest.raises(DataError, match="no name in the 6 forget rows; add a column `subject`"):
        unlearn(recipe, Console(file=io.StringIO()))


@pytest.mark.slow
def test_a_run_with_two_terms_keeps_neighbours_and_writes_none_of_them(people: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    changes: dict[str, Any] = {
        "method": {"name": "npo"},
        "retain": {"name": None, "more": [NEIGHBOURS]},
        "train": {"epochs": 80, "batch_size": 4, "learning_rate": 3e-3},
        "stop": {"forget_target": 0.1, "utility_floor": 0.0, "every": 1},
    }
    with_term = unlearn(recipe_of(people, tmp_path, **changes), Console(file=shown))
    changes |= {"retain": {"name": None}, "output_dir": str(tmp_path / "without")}
    without = unlearn(recipe_of(people, tmp_path, **changes), Console(file=io.StringIO()))
    assert max(with_term.after.forget, without.after.forget) <= 0.1
    kept = [record.after.retain or 0.0 for record in (with_term, without)]
    assert kept[0] > kept[1] + 0.3, "no retain row was trained on"
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("virtual_neighbours_term_loss" in row for row in log)
    written = "".join(
        p.read_text("utf-8") for p in (tmp_path / "run").rglob("*") if p.suffix not in (".safetensors", "")
    )
    assert not any(name in written + shown.getvalue() for name in ("Ada Voss", "Di Kerr", "Where does"))


def test_a_neighbour_floor_keeps_an_earlier_state_and_says_why(people: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "method": {"name": "npo"},
        "retain": {"name": None, "more": [{**NEIGHBOURS, "weight": 0.0}]},
        "train": {"epochs": 8, "batch_size": 4, "learning_rate": 1e-2},
        "stop": {"forget_target": 0.05, "utility_floor": 0.0, "neighbour_floor": 0.9, "every": 1},
    }
    record = unlearn(recipe_of(people, tmp_path, **changes), Console(file=io.StringIO()))
    assert record.before.neighbour is not None
    assert (record.after.neighbour or 0) >= 0.9 * record.before.neighbour
    assert "its neighbours' probability" in record.reason
    assert "stop.neighbour_floor" in record.reason
    changes |= {"retain": {"name": "nll"}, "output_dir": str(tmp_path / "none")}
    with pytest.raises(RecipeError, match="neighbour_floor needs neighbours"):
        unlearn(recipe_of(people, tmp_path, **changes))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([{"weight": 1}], "each entry needs a name"),
        ([{"name": "kl", "weight": -1}], "weight of kl is -1"),
        ([{"name": "kl"}, {"name": "kl"}], "names kl twice"),
        ([{"name": "virtual_neighbours", "known_names": 2}], "known_names is 2"),
        ([{"name": "nol"}], "did you mean 'nll'"),
    ],
)
def test_bad_entries_are_refused(people: Path, tmp_path: Path, more: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        unlearn(recipe_of(people, tmp_path, method={"name": "npo"}, retain={"more": more}))


def test_mined_neighbours_are_retain_rows_of_the_same_wording(people: Path, tmp_path: Path) -> None:
    extra = people / "wide.jsonl"
    others = "".join(
        json.dumps({"question": f"what is {word}?", "answer": "A thing."}) + "\n" for word in ("tea", "rye")
    )
    extra.write_text((people / "retain.jsonl").read_text() + others)
    shown = io.StringIO()
    more = [{"name": "mined_neighbours", "weight": 1.0, "per_question": 2}]
    recipe = recipe_of(
        people, tmp_path, method={"name": "npo"}, retain={"more": more}, train={"epochs": 2, "batch_size": 3}
    )
    object.__setattr__(recipe.data, "retain", DataSource(str(extra)))
    unlearn(recipe, Console(file=shown, width=200))
    assert "mined neighbours: 2 of 6 retain rows" in shown.getvalue()
    recipe = recipe_of(people, tmp_path, method={"name": "npo"}, retain={"name": None, "more": more}, overwrite=True)
    object.__setattr__(recipe.data, "retain", None)
    with pytest.raises(RecipeError, match=r"needs data\.retain"):
        unlearn(recipe)
