"""Test that the TOFU authors' per-example losses give the reference numbers, in both definitions, to 1e-9."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from places import SHARED

from llm_forget.evaluation.aggregate import aggregate
from llm_forget.evaluation.aggregates.forget_quality import forget_quality
from llm_forget.evaluation.aggregates.model_utility import model_utility
from llm_forget.evaluation.metrics.normalised_probability import normalised_probability
from llm_forget.evaluation.metrics.probability import probability
from llm_forget.evaluation.metrics.rouge import rouge
from llm_forget.evaluation.metrics.truth_ratio import forget_truth_ratio, kept_truth_ratio, truth_ratio

LOGS = SHARED / "data" / "tofu" / "eval_logs"
EXPECTED = SHARED / "reference" / "tofu_llama2_expected.json"
pytestmark = pytest.mark.skipif(
    not (LOGS.is_dir() and EXPECTED.is_file()), reason="the evaluation logs of TOFU are not next to the project"
)

MODELS = ("full", "retain90")
DEFINITIONS = ("arithmetic", "geometric")
SETS = {
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
    "retain": "eval_log.json",
    "forget": "eval_log_forget.json",
}


@lru_cache
def logs(model: str, name: str) -> dict[str, Any]:
    path = LOGS / f"llama2-7b_{model}_wd0.01.eval_log_aggregated.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        found: dict[str, Any] = json.load(stream)[SETS[name]]
    return found


@lru_cache
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(EXPECTED.read_text())
    return found


def log_probs(model: str, name: str) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Return the mean log-probs of the answer, the paraphrase and the wrong answers: the negated logged losses."""
    own = logs(model, name)
    right = -np.array(list(own["avg_gt_loss"].values()))
    paraphrases = [-np.array([loss]) for loss in own["avg_paraphrased_loss"].values()]
    wrong = [-np.array(losses) for losses in own["average_perturb_loss"].values()]
    return right, paraphrases, wrong


def ratios(model: str, name: str, definition: str) -> np.ndarray:
    _, paraphrases, wrong = log_probs(model, name)
    return truth_ratio(paraphrases, wrong, definition=definition)


def parts(model: str, name: str, definition: str) -> dict[str, np.ndarray]:
    right, _, wrong = log_probs(model, name)
    plain = name in ("retain", "forget")
    averaged = forget_truth_ratio if name == "forget" else kept_truth_ratio
    return {
        "probability": probability(right) if plain else normalised_probability(right, wrong),
        "rougeL_recall": np.array(list(logs(model, name)["rougeL_recall"].values())),
        "truth_ratio": averaged(ratios(model, name, definition)),
    }


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("model", MODELS)
def test_every_set_and_the_utility(model: str, definition: str) -> None:
    reference = expected()[definition][model]
    for name in SETS:
        found = {metric: aggregate(scores) for metric, scores in parts(model, name, definition).items()}
        for metric, one in found.items():
            assert one.value == pytest.approx(reference[name][metric], abs=1e-9, rel=0), (name, metric)
            assert one.n == reference[name]["n"]
            assert one.low < one.value < one.high
    utility = model_utility({name: parts(model, name, definition) for name in SETS if name != "forget"})
    assert utility.value == pytest.approx(reference["model_utility"], abs=1e-9, rel=0)
    assert utility.n == 9
    assert utility.low < utility.value < utility.high


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_forget_quality(definition: str) -> None:
    reference = expected()[definition]["forget_quality"]
    found = forget_quality(ratios("full", "forget", definition), ratios("retain90", "forget", definition))
    assert found.statistic == pytest.approx(reference["ks_statistic"], abs=1e-9, rel=0)
    assert found.pvalue == pytest.approx(reference["pvalue"], rel=1e-9)
    assert [found.n, found.n_oracle] == reference["n"]
    assert (
        found.direction == "lower"
    )  # the full model still knows the set: it prefers true answers more than the oracle does


@pytest.mark.parametrize("name", ["forget", "world_facts"])
def test_rouge_of_the_texts_equals_the_logged_values(name: str) -> None:
    texts = list(logs("retain90", name)["generated_text"].values())
    recall, _ = rouge([text[2] for text in texts], [text[1] for text in texts], kind="rougeL")
    np.testing.assert_allclose(recall, list(logs("retain90", name)["rougeL_recall"].values()), atol=1e-9)
