"""The evidence for a verdict: a figure's scores of single examples in several results, paired, or else its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.evaluation.aggregates.leak_at_k import leak_estimates
from llm_forget.evaluation.equivalence import (
    LOSS,
    Moments,
    NonInferiority,
    auc_moments,
    independent_moments,
    kept_means,
    kept_pairs,
    paired_moments,
)
from llm_forget.evaluation.figures import Figure, Results
from llm_forget.evaluation.pairs import paired_scores

if TYPE_CHECKING:
    from llm_forget.evaluation.tokens import Floats

Entry = Mapping[str, Any]
_NORMAL = 1.959964  # standard errors from the middle to the end of a 95 % interval


def forget_moments(figure: Figure, entries: Sequence[Entry], results: Sequence[Results]) -> Moments | None:
    """The moments of unlearned, oracle and target for a forget figure; None without scores and intervals.

    Args:
        figure: the figure.
        entries: its entry in the three results, in this order.
        results: the three results.
    """
    if figure.source[:1] == ("attack",):
        found = _attack_scores(figure, results)
        if found is not None:
            return auc_moments(*found)
    paired = example_scores(figure, results)
    if paired is not None:
        return paired_moments(*paired)
    known = [_mean_and_error(entry) for entry in entries]
    rows = min(int(entry.get("n") or 0) for entry in entries)
    if rows < 2 or None in known:
        return None
    return independent_moments(rows, *(one for one in known if one is not None))


def loss_of(figure: Figure, own: Entry, other: Entry, results: Sequence[Results]) -> NonInferiority | None:
    """Whether a figure that must stay is kept against the same figure of another model; None without scores and intervals.

    Args:
        figure: the figure.
        own: the model's entry.
        other: the other model's entry.
        results: both results.
    """
    paired = example_scores(figure, results)
    if figure.source == ("perplexity",) and paired is not None:
        # the scores are log-perplexities
        return kept_pairs(*paired, bad=1, relative=False, margin=float(np.log1p(LOSS)))
    if paired is not None:
        return kept_pairs(*paired, bad=figure.bad, relative=figure.relative)
    first, second = _mean_and_error(own), _mean_and_error(other)
    if first is None or second is None:
        return None
    rows = min(int(own.get("n") or 0), int(other.get("n") or 0))
    return kept_means(rows, first, second, bad=figure.bad, relative=figure.relative)


def example_scores(figure: Figure, results: Sequence[Results]) -> list[Floats] | None:
    """(E,) scores of the same examples in each result, whose mean is the figure; None if there are none."""
    kind, *rest = figure.source or ("",)
    if kind == "set" and all(rest[0] in one["sets"] for one in results):
        return paired_scores(rest[1], *(one["sets"][rest[0]] for one in results))
    columns: list[Floats | None] = []
    if kind == "leak":
        columns = [_leak_scores(rest[0], int(rest[1]), one, results[0]) for one in results]
    elif kind == "capability":
        columns = [_answers(one, results[0]) for one in results]
    elif kind == "perplexity":
        columns = [_window_losses(one, results[0]) for one in results]
    found = [one for one in columns if one is not None]
    if not found or len(found) < len(columns):
        return None
    good = ~np.isnan(found).any(axis=0)
    return None if good.sum() < 2 else [one[good] for one in found]


def _leak_scores(name: str, k: int, one: Results, first: Results) -> Floats | None:
    examples, order = one["sets"].get(name, {}).get("examples") or {}, first["sets"][name].get("examples") or {}
    drawn = ((one.get("leak") or {}).get(name) or {}).get("samples")
    if drawn is None or not order or examples.keys() != order.keys():
        return None
    counts = _column(examples[row].get("leak_samples") for row in order)
    estimates = leak_estimates(np.nan_to_num(counts), int(drawn), k)
    estimates[np.isnan(counts)] = np.nan
    return estimates


def _answers(one: Results, first: Results) -> Floats | None:
    own, order = ((result.get("capability") or {}).get("correct") or {} for result in (one, first))
    same = one["capability"]["task"] == first["capability"]["task"] and own.keys() == order.keys()
    return np.array([float(own[row][0]) for row in order]) if same and own else None


def _window_losses(one: Results, first: Results) -> Floats | None:
    """(W,) values whose mean is the log-perplexity of the text."""
    own, other = one.get("perplexity") or {}, first.get("perplexity") or {}
    tokens = own.get("window_tokens")
    if not tokens or tokens != other.get("window_tokens"):
        return None
    lengths = np.array(tokens, dtype=np.float64)
    found: Floats = -_column(own["window_mean_logps"]) * lengths / lengths.mean()
    return found


def _attack_scores(figure: Figure, results: Sequence[Results]) -> tuple[list[Floats], list[Floats]] | None:
    """The attack's scores of members and of non-members in each result, for the rows that all could score."""
    classes = []
    for name in figure.sets:
        examples = [one["sets"].get(name, {}).get("examples") or {} for one in results]
        if not examples[0] or any(one.keys() != examples[0].keys() for one in examples):
            return None
        label = f"attack_{figure.source[1]}"
        columns = [_column(one[row].get(label) for row in examples[0]) for one in examples]
        good = ~np.isnan(columns).any(axis=0)
        if good.sum() < 2:
            return None
        classes.append([one[good] for one in columns])
    return (classes[0], classes[1]) if len(classes) == 2 else None


def _column(values: Any) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _mean_and_error(entry: Entry) -> tuple[float, float] | None:
    """A mean and its standard error, from its 95 % interval; None without one."""
    if entry["value"] is None or entry.get("low") is None or entry.get("high") is None:
        return None
    return float(entry["value"]), (float(entry["high"]) - float(entry["low"])) / (2 * _NORMAL)
