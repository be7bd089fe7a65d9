"""Does a forecast from files rank what rounding to nf4 brings back? Several forecasts, against what comes back in nats.

    python scripts/forecast_ranks.py runs/demo/npo runs/demo/grad_diff … [--write forecast_ranks.md]

Needs target and oracle next to the runs. Loads every model twice: 40 seconds of one core for a model of 135 million weights.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from llm_forget.adapters.base_layers import base_layers  # noqa: E402
from llm_forget.auditing.artefact import artefact_of  # noqa: E402
from llm_forget.auditing.forecast import updates  # noqa: E402
from llm_forget.auditing.forms import FORMS  # noqa: E402
from llm_forget.auditing.rounding import nf4_rounded  # noqa: E402
from llm_forget.auditing.subject import LoadedSubject  # noqa: E402
from llm_forget.data.encode import EncodingConfig  # noqa: E402
from llm_forget.data.examples import DataSource, Example, read_examples  # noqa: E402

WHOLE, ROUNDED = "merged_bf16", "nf4"
MOST_LEFT = 0.5  # R on merged weights; of a run that forgot less than half, noise is most of what comes back
ROWS = 128  # of each weight
NAMES = {
    "kept": "cosine of the rounded change with the update (what the audit prints)",
    "own directions": "the same in the update's own input directions only",
    "by layer": "mean of the layers' cosines",
    "weakest layer": "the lowest of the layers' cosines in their own directions",
    "first direction": "mean of the layers' cosines in the update's strongest direction",
    "size": "norm of the update",
    "projection": "length of the rounded change along the update, over the update's length",
}
HEAD = """# Forecasts of nf4 from files, ranked

Written by `scripts/forecast_ranks.py`. *Left*: R = (log p − oracle) / (target − oracle), with the mean log-prob per answer
token of the forget rows, each model in the same form. *Comes back*: (R on nf4 − R merged) / (1 − R merged). A good forecast
falls where it rises.

| run | left, merged | left, nf4 | comes back | """


def mean_logp(place: Path, form: str, rows: list[Example], encoding: EncodingConfig) -> float:
    """Mean log-prob per answer token of the rows, in nats."""
    model, tokenizer = artefact_of(place)[0].load(FORMS[form])
    scores = LoadedSubject(model, tokenizer, encoding, FORMS[form]).score(rows)
    del model
    gc.collect()
    return float(scores.mean_logps().mean())


def forecasts(base: Path, adapter: Path) -> dict[str, float]:
    """Each forecast of ``NAMES``."""
    whole, own, layers, weakest, first = np.zeros(3), np.zeros(3), [], [], []
    for _, given, update in updates(base_layers(base), adapter):
        _, sizes, inputs = torch.linalg.svd(update.double(), full_matrices=False)
        if not float(sizes[0]):
            continue
        chosen = torch.linspace(0, len(given) - 1, min(ROWS, len(given))).round().long()
        weight, change = given[chosen], update[chosen]
        step, change = (nf4_rounded(weight + change) - nf4_rounded(weight)).double(), change.double()
        directions = inputs[: int((sizes > sizes[0] * 1e-5).sum())].T
        whole += (sums := products(step, change))
        own += (inside := products(step @ directions, change @ directions))
        layers.append(cosine(sums))
        weakest.append(cosine(inside))
        first.append(cosine(products(step @ directions[:, :1], change @ directions[:, :1])))
    values = (cosine(whole), cosine(own), np.mean(layers), min(weakest), np.mean(first), whole[2] ** 0.5)
    return dict(zip(NAMES, map(float, (*values, whole[0] / whole[2])), strict=True))


def products(a: Tensor, b: Tensor) -> np.ndarray:
    """<a, b>, <a, a> and <b, b>."""
    return np.array([float((a * b).sum()), float(a.square().sum()), float(b.square().sum())])


def cosine(sums: np.ndarray) -> float:
    """The cosine of ``products``."""
    return float(sums[0] / math.sqrt(sums[1] * sums[2])) if sums[1] and sums[2] else 0.0


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--forget", type=Path, help="default: data/forget.jsonl next to the runs")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    root = given.runs[0].parent
    rows = read_examples(DataSource(str(given.forget or root / "data/forget.jsonl")))
    encoding = EncodingConfig(system_prompt="")
    ends = {
        form: [mean_logp(root / role, form, rows, encoding) for role in ("target", "oracle")]
        for form in (WHOLE, ROUNDED)
    }

    def left(run: Path, form: str) -> float:
        target, oracle = ends[form]
        return (mean_logp(run, form, rows, encoding) - oracle) / (target - oracle)

    found = []
    for run in given.runs:
        merged, rounded = left(run, WHOLE), left(run, ROUNDED)
        if merged < 1:
            back = (rounded - merged) / (1 - merged)
            found.append((run.name, merged, rounded, back, forecasts(root / "target/model", run / "adapter")))
            print(f"{run.name}: {back:.2f} comes back", flush=True)
    found.sort(key=lambda one: one[3])
    text = HEAD + " | ".join(NAMES) + " |\n|" + "---|" * (4 + len(NAMES)) + "\n"
    for name, *numbers, forecast in found:
        text += f"| {name} | " + " | ".join(f"{value:.2f}" for value in (*numbers, *forecast.values())) + " |\n"
    text += "\nSpearman's rank correlation with what does not come back, of the runs that forgot at least half, and of all:\n\n"
    text += "| forecast | what | ranks | of all |\n|---|---|---|---|\n"
    for name, what in NAMES.items():
        ranks = [
            spearmanr([one[4][name] for one in some], [-one[3] for one in some]).statistic
            for some in ([one for one in found if one[1] <= MOST_LEFT], found)
        ]
        text += f"| {name} | {what} | {ranks[0]:.2f} | {ranks[1]:.2f} |\n"
    text += f"\n{sum(one[1] <= MOST_LEFT for one in found)} of {len(found)} runs had R of at most {MOST_LEFT}.\n"
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
