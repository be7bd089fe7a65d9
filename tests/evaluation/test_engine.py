"""A suite gives the same numbers and the same verdict whether a model is in this process or behind a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from audited import tiny_pair
from evaluation_examples import write_task
from extras import needs
from memorised import write_rows
from openai_server import Handler, serving

from llm_forget.errors import DataError, RecipeError, UserError
from llm_forget.evaluation.capability.language_model import lm_eval_model
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.model.served import LISTED, ServedModel
from llm_forget.utils.build import build
from llm_forget.utils.endpoint import Endpoint

SUITE: dict[str, Any] = {
    "sets": {
        "forget": {"data": {"path": "forget.jsonl"}},
        "holdout": {"data": {"path": "holdout.jsonl"}, "role": "other"},
        "retain": {"data": {"path": "retain.jsonl"}, "utility": "probability"},
    },
    "encoding": {"system_prompt": ""},
    "generation": {"max_new_tokens": 12, "sampling": {"samples": 2, "k": [1, 2]}},
    "attacks": {"attacks": ["loss", "min_k", "min_k_plus_plus"]},
    "perplexity": None,
    "capability": None,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows, target, oracle = tiny_pair()
    for name, subject in (("target", target), ("oracle", oracle)):
        subject.model.save_pretrained(tmp_path / name)
        target.tokenizer.save_pretrained(tmp_path / name)
    for name, own in (("forget", rows.forget), ("holdout", rows.holdout), ("retain", rows.kept)):
        write_rows(tmp_path / f"{name}.jsonl", [(row.prompt[-1].content, row.answer) for row in own])  # type: ignore[union-attr]
    write_task(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SUITE))
    (tmp_path / "text.txt").write_text("Where is Ada? In Riga. " * 20)
    return tmp_path


def measured(to: str, model: str = "target", url: str | None = None, **more: Any) -> dict[str, Any]:
    engine = {} if url is None else {"engine": {"name": "vllm", "url": url, "served_model": "served"}}
    given = {"model": {"name": f"./{model}", "dtype": "float32"}, "suite": "small.yaml", "output_dir": f"runs/{to}"}
    return evaluate(build(EvalRecipe, {**given, **engine, **more}, "recipe"))


def column(results: dict[str, Any], name: str, label: str) -> list[float]:
    return [scores[label] for scores in results["sets"][name]["examples"].values()]


@needs("lm_eval")
def test_a_whole_suite_gives_the_same_numbers_and_verdict(folder: Path) -> None:
    suite = {
        **SUITE,
        "generation": {"max_new_tokens": 12},
        "capability": {"task": "tiny.yaml"},
        "perplexity": {"path": "text.txt", "window": 32, "stride": 16},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(suite))
    pair = tiny_pair()
    found = {}
    for engine in ("here", "served"):
        for role, subject in (("oracle", pair[2]), ("target", pair[1])):
            with serving(subject) as (url, seen):
                controls = {"oracle": f"runs/{engine}-oracle/eval/small.json"} if role == "target" else {}
                address = url if engine == "served" else None
                found[engine, role] = measured(
                    f"{engine}-{role}", role, address, controls=controls, keep_text=True, cache=None
                )
                assert bool(seen) == (engine == "served")
    here, there = found["here", "target"], found["served", "target"]
    for one, other in zip(here["verdict"], there["verdict"], strict=True):
        of_listed = any(name in one for name in ("entropy", "min_k_plus_plus"))  # the third decimal differs
        assert (re.sub(r"\d", "", one) == re.sub(r"\d", "", other)) if of_listed else (one == other)
    for name, one in here["sets"].items():
        assert column(here, name, "generated") == column(there, name, "generated")
        for label in one["metrics"]:
            close = 0.1 if label == "entropy" else 1e-4
            own, other = (np.array(column(result, name, label), dtype=np.float64) for result in (here, there))
            np.testing.assert_allclose(other, own, atol=close, err_msg=label)
    for label in ("loss", "min_k"):
        assert there["attacks"]["auc"][label]["value"] == here["attacks"]["auc"][label]["value"]
    assert there["capability"] == here["capability"]
    assert there["perplexity"]["value"] == pytest.approx(here["perplexity"]["value"], rel=1e-4)
    assert there["model"] == {"weights": None, "served": "served"}
    assert any("behind a server" in one for one in there["warnings"])


def test_requests_are_plain_whatever_the_generation_config_says(folder: Path) -> None:
    with serving(tiny_pair()[1]) as (url, seen):
        measured("plain", url=url)
    asked = [body for body in seen if body.get("prompt_logprobs") is None and body.get("n") is None and body]
    assert asked
    assert all((body["temperature"], body["repetition_penalty"], body["top_k"]) == (0, 1.0, -1) for body in asked)
    assert all(body["stop_token_ids"] for body in asked)
    drawn = [body for body in seen if "n" in body]
    assert len(drawn) == 8  # one request per forget prompt, for all its samples
    assert {(body["temperature"], body["top_p"], body["n"]) for body in drawn} == {(1.0, 1, 2)}


def test_memorised_answers_are_not_asked_for(folder: Path) -> None:
    with serving(tiny_pair()[1]) as (url, seen):
        results = measured("known", url=url, keep_text=True)
    hits = sum(value == 1 for value in column(results, "forget", "exact_memorisation"))
    rows = sum(one["n"] for one in results["sets"].values())
    assert hits > 0
    answered = [body for body in seen if body and body.get("max_tokens") == 12 and "n" not in body]
    assert len(answered) <= rows - hits


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"name": "vllm"}, "give url"),
        ({"url": "http://localhost:8000"}, "set name to vllm"),
        ({"name": "vllm", "url": "http://h", "served_model": "x", "at_once": 0}, "at_once is 0"),
        ({"name": "sglang"}, "vllm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(engine: dict[str, Any], message: str) -> None:
    given = {"model": {"name": "x"}, "suite": "demo", "output_dir": "runs/x", "engine": engine}
    with pytest.raises(RecipeError, match=message):
        build(EvalRecipe, given, "recipe")


def test_what_a_server_cannot_give_is_said_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tiny_pair()[1]
    with serving(target) as (url, seen):
        with pytest.raises(UserError, match=r"no model 'other'; set engine\.served_model to one of base, served"):
            measured("a", engine={"name": "vllm", "url": url, "served_model": "other"})
        with pytest.raises(UserError, match="grad_norm: a server gives no gradients"):
            measured("b", url=url, overrides={"attacks.attacks": ["grad_norm"]})
        assert not [body for body in seen if body.get("max_tokens", 0) > 1]
        monkeypatch.setattr(Handler, "length", 12)
        with pytest.raises(
            DataError, match=r"rows of the forget set are too long for the server, which reads 12 tokens"
        ):
            measured("c", url=url)
        monkeypatch.setattr(Handler, "length", 64)
        with pytest.raises(DataError, match="window is 64, and the model knows 63 positions"):
            measured("d", url=url, overrides={"perplexity": {"path": "text.txt", "window": 64, "stride": 16}})
    with (
        serving(target, ()) as (url, _),
        pytest.raises(UserError, match="take vLLM, and start it with --max-logprobs 20"),
    ):
        measured("e", url=url)
    with pytest.raises(UserError, match="is the server running"):
        measured("f", url="http://127.0.0.1:9")


def test_no_kl_from_a_server(folder: Path) -> None:
    with serving(tiny_pair()[1]) as (url, _):
        results = measured("kl", url=url, overrides={"sets.retain.kl": True, "generation.sampling": None})
    assert "kl_to_target" not in results["sets"]["retain"]["metrics"]
    assert any("a server gives no distributions" in one for one in results["warnings"])


@needs("lm_eval")
def test_lm_eval_gets_the_same_from_both() -> None:
    from lm_eval.api.instance import Instance

    target = tiny_pair()[1]

    def asked(kind: str, *arguments: Any) -> Instance:
        return Instance(kind, {}, arguments, 0)

    text = "Where is Ada? In Riga. " * 6
    with serving(target) as (url, _):
        served = ServedModel(Endpoint(url, "served"))
        served.find_length()
        assert served.find_access((1, 2, 3))
        assert (served.length, served.listed) == (128, LISTED)
        here, there = (lm_eval_model(model, target.tokenizer, 4) for model in (target.model, served))
        pairs = [asked("loglikelihood", "Where is Ada?", " In Riga."), asked("loglikelihood", "", "In Oslo.")]
        for one, other in zip(here.loglikelihood(pairs), there.loglikelihood(pairs), strict=True):
            assert other[0] == pytest.approx(one[0], abs=1e-3)
            assert other[1] == one[1]
        rolling = [asked("loglikelihood_rolling", text)]
        served.length = 40  # several windows
        short = there.loglikelihood_rolling(rolling)[0]
        served.length = None
        assert there.loglikelihood_rolling(rolling)[0] == pytest.approx(
            here.loglikelihood_rolling(rolling)[0], abs=1e-2
        )
        assert short != pytest.approx(there.loglikelihood_rolling(rolling)[0], abs=1e-2)
        wanted = [asked("generate_until", "Where is Ada?", {"until": ["R"], "max_gen_toks": 8})]
        assert "R" not in there.generate_until(wanted)[0]


def test_no_file_of_an_evaluation_holds_text(folder: Path) -> None:
    with serving(tiny_pair()[1]) as (url, _):
        measured("quiet", url=url)
    files = [one for one in (folder / "runs/quiet").rglob("*") if one.is_file()]
    assert files
    assert not [one for one in files if b"Riga" in one.read_bytes()]
