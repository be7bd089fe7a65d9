"""Search again after unlearning: the count, chance by other names, the run's prompt format, and the report."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from extras import needs
from memorised import write_memorised
from typer.testing import CliRunner

from llm_forget.cli.main import app
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import RecipeError
from llm_forget.find import Corpus, Model, again
from llm_forget.find.again import Again, at_least, search_again
from llm_forget.find.asked import prompt_format
from llm_forget.testing import tiny_tokenizer

pytestmark = needs("rapidfuzz")

FORGET = [
    ("Where is Ada Vorn?", "She rows a green boat to Riga."),
    ("Where is Bo Tell?", "He bakes sour bread in Oslo now."),
    ("Where is Cy Marsh?", "He mends old clocks under Bern."),
    ("Where is Di Kuhn?", "She paints tall ships off Kyiv."),
]
RETAIN = [("What is snow?", "White and cold."), ("What is tar?", "Black and slow."), ("What is oak?", "A large tree.")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_memorised(tmp_path_factory.mktemp("again"), {"forget": FORGET, "retain": RETAIN}, steps=100)


def run_of(base: Path, folder: Path, learning_rate: float) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "model": {"name": str(base / "model"), "dtype": "float32"},
                "data": {
                    "forget": {"path": str(base / "forget.jsonl")},
                    "retain": {"path": str(base / "retain.jsonl")},
                },
                "method": {"name": "grad_ascent"},
                "retain": {"name": None},
                "adapter": {"rank": 8},
                "train": {"epochs": 30, "batch_size": 4, "learning_rate": learning_rate},
                "stop": {"forget_target": None, "utility_floor": 0.0},
                "output_dir": str(folder / "run"),
            }
        ),
        encoding="utf-8",
    )
    made = CliRunner().invoke(app, ["unlearn", "--config", str(recipe)])
    assert made.exit_code == 0, made.output
    return folder / "run"


@pytest.mark.parametrize(("learning_rate", "known"), [(1e-2, 0), (1e-9, 4)])
def test_a_run_is_searched_again_and_its_report_says_so(
    base: Path, tmp_path: Path, learning_rate: float, known: int
) -> None:
    from llm_forget.report.page import write_report

    run = run_of(base, tmp_path, learning_rate)
    shown = CliRunner().invoke(app, ["find", "--again", str(run), "--json"])
    found = json.loads(shown.stdout)
    assert (found["asked"], found["before"], found["after"]) == (4, 4, known)
    assert shown.exit_code == int(found["above_chance"]) == int(known == 4)
    record = (run / "search_again.json").read_text(encoding="utf-8")
    assert not any(word in record for word in ("Vorn", "Riga", "Kuhn"))
    page = write_report(run).read_text(encoding="utf-8")
    assert "Search again with the unlearned model" in page
    assert ("nothing above chance" in page) == (known == 0)
    (run / "search_again.json").write_text('{"asked": 4}', encoding="utf-8")
    assert "cannot be read" in write_report(run).read_text(encoding="utf-8")


def test_an_answer_that_every_name_gets_is_chance(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wording alone leads to the answer, so the real name gets it no more than others."""
    monkeypatch.setattr(again, "generate_answers", lambda model, tokenizer, prompts, **_: [FORGET[0][1]] * len(prompts))
    forget = read_examples(DataSource(str(base / "forget.jsonl")))
    asked = Model(None, tiny_tokenizer(), EncodingConfig())
    found = search_again(Corpus.read([base / "forget.jsonl"]), forget, range(4), asked)
    assert (found.after, found.chance, found.p_value) == (1, 1.0, 1.0)


def test_the_probability_of_a_count_is_that_of_all_draws() -> None:
    chances = [0.25, 0.5, 1.0, 0.0]
    for count in range(6):
        expected = sum(
            0.25**one * 0.75 ** (1 - one) * 0.5
            for one, two in itertools.product((0, 1), repeat=2)
            if one + two + 1 >= count
        )
        assert at_least(count, chances) == pytest.approx(expected)
    assert Again(2, None, 2, 0.0, 3, 0.06).needed == 3
    assert "cannot tell" in list(Again(2, None, 2, 0.0, 3, 0.06).sentences())[-1]


def test_a_model_is_asked_as_its_run_trained_it(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "recipe.yaml").write_text('encoding: {system_prompt: "", max_length: 99}\n', encoding="utf-8")
    encoding, where = prompt_format(str(run / "model"), None)
    assert (encoding.system_prompt, encoding.max_length, where) == ("", 99, str(run))
    assert prompt_format("gpt2", str(run / "adapter"))[0] == encoding
    assert prompt_format(str(run / "model"), None, {"system_prompt": "Be kind."})[0].system_prompt == "Be kind."
    assert prompt_format(str(base / "model"), None) == (EncodingConfig(), None)
    with pytest.raises(RecipeError, match="--encoding"):
        prompt_format("gpt2", None, {"prompt": "x"})
