"""Measure by simulation that the evaluation's intervals cover, and that its verdict makes no false claim.

    python scripts/interval_coverage.py                  10,000 draws: the tables of scripts/interval_coverage.md, in half an hour
    python scripts/interval_coverage.py --draws 1000     the same within ± 0.014, in a few minutes

The coverage of a rate is a sum over the binomial distribution, so it is computed and not simulated. Only numpy and scipy are
used; no model is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from math import sqrt

import numpy as np
from scipy.stats import binom, norm

from llm_forget.evaluation.aggregates.auc import auc
from llm_forget.evaluation.aggregates.leak_at_k import leak_at_k
from llm_forget.evaluation.aggregates.model_utility import model_utility
from llm_forget.evaluation.aggregates.privleak import privleak
from llm_forget.evaluation.equivalence import (
    MARGIN,
    Answer,
    Kept,
    Moments,
    auc_moments,
    equivalence,
    kept_pairs,
    paired_moments,
)
from llm_forget.evaluation.intervals import influence_interval, mean_interval
from llm_forget.evaluation.tokens import Floats

Interval = tuple[float, float]
Generator = np.random.Generator
Drawn = Callable[[Generator, int], Interval]
ROWS, FEW_ROWS = (20, 40, 200), (10, 32, 400)
RATES = (0.02, 0.05, 0.3)
_MANY = 1_000_000  # draws for a true value without a formula
_UNIT = (0.0, 1.0)


def intervals() -> Iterator[tuple[str, float, Drawn]]:
    """Name, true value, and a function that draws a sample and gives its interval."""
    shapes: dict[str, Callable[[Generator, int], Floats]] = {
        "mean, normal": lambda draw, n: draw.normal(0.5, 0.15, n),
        "mean, kept probability Beta(8, 0.8)": lambda draw, n: draw.beta(8, 0.8, n),
        "mean, forgotten probability Beta(0.3, 3)": lambda draw, n: draw.beta(0.3, 3, n),
        "mean, heavy tail: log-normal, median e⁻⁴, σ = 1": lambda draw, n: _log_normal(draw, n, 1.0),
        "mean, heavy tail: log-normal, median e⁻⁴, σ = 1.5": lambda draw, n: _log_normal(draw, n, 1.5),
        "mean, heavy tail: log-normal, median e⁻⁴, σ = 2": lambda draw, n: _log_normal(draw, n, 2.0),
        "mean, ROUGE: 70 % are 0": lambda draw, n: np.where(draw.random(n) < 0.7, 0.0, draw.choice([0.2, 0.5, 1.0], n)),
    }
    for name, draw_scores in shapes.items():
        bounds = (None, None) if name == "mean, normal" else _UNIT
        yield name, _true(name, draw_scores), _of_mean(draw_scores, bounds)
    for value in (0.5, 0.86, 0.983):
        yield f"AUC {value}", value, _of_auc(float(norm.ppf(value)) * sqrt(2))
    yield "PrivLeak −71", 100 * (0.5 - float(norm.cdf(1.5 / sqrt(2)))) / 0.5, _of_privleak
    yield "leak@1 of 16 samples", 0.3 / 3.3, lambda draw, n: _of_leak(draw, n, 1)
    yield "leak@8 of 16 samples", _true_leak(8), lambda draw, n: _of_leak(draw, n, 8)
    yield "model utility, six components", _UTILITY, _of_utility
    yield "perplexity, log", 3.0, _of_perplexity
    yield "paired change, skewed", 0.9 * 0.3 / 3.3 - 0.3 / 3.3, _of_change


def _log_normal(draw: Generator, n: int, sigma: float) -> Floats:
    return np.minimum(1.0, np.exp(draw.normal(-4, sigma, n)))


def _true(name: str, scores: Callable[[Generator, int], Floats]) -> float:
    known = {"mean, normal": 0.5, "mean, kept probability Beta(8, 0.8)": 8 / 8.8}
    known |= {"mean, forgotten probability Beta(0.3, 3)": 0.3 / 3.3, "mean, ROUGE: 70 % are 0": 0.3 * 1.7 / 3}
    return known.get(name) or float(scores(np.random.default_rng(1), _MANY).mean())


def _of_mean(scores: Callable[[Generator, int], Floats], bounds: tuple[float | None, float | None]) -> Drawn:
    return lambda draw, n: mean_interval(scores(draw, n), bounds=bounds)


def _of_auc(distance: float) -> Drawn:
    def drawn(draw: Generator, n: int) -> Interval:
        found = auc(draw.normal(distance, 1, n), draw.normal(0, 1, n))
        return found.low, found.high

    return drawn


def _of_privleak(draw: Generator, n: int) -> Interval:
    """The oracle's AUC is ½, the model's that of two normals 1.5 apart; the scores of both correlate by ½."""
    rows = [draw.normal(size=n) for _ in range(2)]
    own, never = ([(part + draw.normal(size=n)) / sqrt(2) for part in rows] for _ in range(2))
    found = privleak([own[0] + 1.5, never[0]], [own[1], never[1]])
    return found.low, found.high


def _of_leak(draw: Generator, n: int, k: int) -> Interval:
    chances = draw.beta(0.3, 3, n)
    found = leak_at_k((draw.random((n, 16)) < chances[:, None]).astype(float), k)
    return found.low, found.high


def _true_leak(k: int) -> float:
    return float((1 - (1 - np.random.default_rng(1).beta(0.3, 3, _MANY)) ** k).mean())


_UTILITY = 6 / (1 / 0.8 + 1 / 0.6 + 1 / 0.5 + 1 / 0.9 + 1 / 0.4 + 1 / 0.7)


def _of_utility(draw: Generator, n: int) -> Interval:
    means = {"retain": (0.8, 0.6, 0.5), "real": (0.9, 0.4, 0.7)}
    parts = {
        name: {str(mean): draw.beta(4 * mean, 4 * (1 - mean), n) for mean in found} for name, found in means.items()
    }
    found = model_utility(parts)
    return found.low, found.high


def _of_perplexity(draw: Generator, n: int) -> Interval:
    """Windows of 20 to 200 tokens; the mean loss of a window is independent of its length."""
    lengths = draw.integers(20, 200, n)
    sums = lengths * draw.gamma(9, 1 / 3, n)
    value = float(sums.sum() / lengths.sum())
    return influence_interval(value, [(sums - value * lengths) / lengths.mean()])


def _of_change(draw: Generator, n: int) -> Interval:
    before = draw.beta(0.3, 3, n)
    return mean_interval(0.9 * before + 0.02 * draw.normal(size=n) - before)


def coverage(drawn: Drawn, true: float, rows: int, draws: int, seed: int) -> float:
    """Share of intervals that hold the true value."""
    draw = np.random.default_rng([seed, rows])
    found = [drawn(draw, rows) for _ in range(draws)]
    return float(np.mean([low - 1e-9 <= true <= high + 1e-9 for low, high in found]))


def rate_coverage(rate: float, rows: int) -> float:
    """Probability that the interval of a rate holds it, exactly: each possible number of hits with its probability."""
    held = 0.0
    for hits in range(rows + 1):
        low, high = mean_interval(np.arange(rows) < hits, bounds=(0, 1))
        held += float(binom.pmf(hits, rows, rate)) * (low <= rate <= high)
    return held


def models() -> Iterator[tuple[str, Callable[[Generator, int, float], Moments]]]:
    """Name, and a function that draws the moments of a model with a share of the knowledge left."""
    for name, scores in {"probability": _probability, "ROUGE": _rouge, "heavy-tailed": _heavy}.items():
        for way in ("part of each answer", "some questions whole"):
            yield f"{name}, {way}", _model(scores, way == "some questions whole")
    yield "attack's AUC, some rows whole", _attack


def _probability(draw: Generator, n: int) -> tuple[Floats, Floats]:
    oracle = draw.beta(1, 6, n)
    return oracle, oracle + (1 - oracle) * draw.beta(8, 2, n)


def _rouge(draw: Generator, n: int) -> tuple[Floats, Floats]:
    return draw.beta(2, 4, n), np.where(draw.random(n) < 0.85, 1.0, draw.beta(4, 2, n))


def _heavy(draw: Generator, n: int) -> tuple[Floats, Floats]:
    return np.exp(draw.normal(-6, 1.5, n)), np.minimum(1.0, np.exp(draw.normal(-3, 2, n)))


def _model(scores: Callable[[Generator, int], tuple[Floats, Floats]], lumpy: bool) -> Callable[..., Moments]:
    def drawn(draw: Generator, n: int, share: float) -> Moments:
        oracle, target = scores(draw, n)
        left = draw.random(n) < share if lumpy else share
        own = oracle + left * (target - oracle) + 0.05 * (target - oracle).mean() * draw.normal(size=n)
        return paired_moments(own, oracle, target)

    return drawn


def _attack(draw: Generator, n: int, share: float) -> Moments:
    """The target's members are 2 above the non-members; the model's score of a row is the target's or the oracle's."""
    own, other = draw.normal(size=n), draw.normal(size=n)
    never = 0.7 * own + sqrt(0.51) * draw.normal(size=n)
    target = own + 2
    model = np.where(draw.random(n) < share, target, never)
    return auc_moments([model, never, target], [other, other, other])


def share_of(answer: Answer, drawn: Callable[..., Moments], share: float, rows: int, draws: int, seed: int) -> float:
    """Share of draws with an answer."""
    draw = np.random.default_rng([seed, rows])
    return float(np.mean([equivalence(drawn(draw, rows, share)).answer is answer for _ in range(draws)]))


def false_kept(rows: int, draws: int, seed: int) -> float:
    """Share of draws in which a loss of exactly 5 % is called kept."""
    draw, found = np.random.default_rng([seed, rows]), 0
    for _ in range(draws):
        before = draw.beta(8, 2, rows)
        after = 0.95 * before + 0.05 * draw.normal(size=rows)
        found += kept_pairs(after, before, bad=-1).answer is Kept.KEPT
    return found / draws


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=10_000, help="simulated samples per number")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draws, seed = asked.draws, asked.seed
    print(f"Coverage of nominal 95 % intervals, {draws} draws, seed {seed}:\n")
    print("| interval | " + " | ".join(f"n = {n}" for n in ROWS) + " |\n|---" * 1 + "|---" * len(ROWS) + "|")
    for name, true, drawn in intervals():
        cells = [f"{coverage(drawn, true, n, draws, seed):.3f}" for n in ROWS]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for rate in RATES:
        print(f"| rate {rate} | {' | '.join(f'{rate_coverage(rate, n):.3f}' for n in ROWS)} |")
    print('\nShare of draws called "as if never seen", by the share of the knowledge that is left:\n')
    head = [f"{100 * share:.0f} %, n = {n}" for share in (0.5, MARGIN, 0.0) for n in FEW_ROWS]
    print("| model | " + " | ".join(head) + " |\n|---" + "|---" * len(head) + "|")
    for name, model in models():
        cells = [
            f"{share_of(Answer.AS_IF_NEVER_SEEN, model, share, n, draws, seed):.3f}"
            for share in (0.5, MARGIN, 0.0)
            for n in FEW_ROWS
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    cells = [f"n = {n}: {false_kept(n, draws, seed):.3f}" for n in FEW_ROWS]
    print(f"\nA loss of exactly 5 % called kept: {', '.join(cells)}")


if __name__ == "__main__":
    main()
