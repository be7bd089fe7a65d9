"""Generate answers and compute the metrics that read them. The cache stores the numbers, not the text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.metrics import Metric, SetScores
from llm_forget.evaluation.passes.asking import answers_of, end_tokens
from llm_forget.evaluation.passes.cache import Arrays, remember, rows_digest
from llm_forget.evaluation.tokens import Floats
from llm_forget.utils.digests import json_digest, text_digest

if TYPE_CHECKING:
    from llm_forget.evaluation.sets import Loaded

_TEXT, _ENDS = "text_utf8", "text_ends"  # no metric has these labels


def text_metrics(
    metrics: Sequence[Metric],
    known: SetScores,
    rows: Sequence[Encoded],
    prompts: Sequence[tuple[int, ...]],
    begun: Sequence[tuple[int, ...]],
    loaded: Loaded,
) -> tuple[dict[str, Floats], SetScores]:
    """Generate one answer per prompt, and compute the metrics that read the answers.

    Args:
        metrics: the metrics that need ``generated``.
        known: the set's other scores.
        rows: every encoded answer of the set.
        prompts: (E) token ids.
        begun: (E) the tokens with which each answer is known to begin.
        loaded: the model. Its cache stores the metrics' numbers, and the texts only if ``keep_text``.

    Returns:
        Label → (E,) scores; and ``known``, with the texts if ``keep_text``.
    """

    def compute() -> Arrays:
        with loaded.meter.bar("prompts answered", len(prompts)) as progress:
            said = answers_of(
                loaded.model,
                loaded.tokenizer,
                prompts,
                max_new_tokens=loaded.generation.max_new_tokens,
                batch_size=loaded.generation.batch_size,
                begun=begun,
                progress=progress,
                accelerator=loaded.accelerator,
            )
        whole = replace(known, generated=said)
        found: Arrays = {metric.label: metric.per_example(whole) for metric in metrics}
        return {**found, **_as_arrays(said)} if loaded.keep_text else found

    arrays = remember(
        loaded.cache, loaded.accelerator, "texts", _parts(metrics, known, rows, prompts, begun, loaded), compute
    )
    scores = {metric.label: np.asarray(arrays[metric.label], dtype=np.float64) for metric in metrics}
    return scores, replace(known, generated=_as_texts(arrays)) if loaded.keep_text else known


def _parts(
    metrics: Sequence[Metric],
    known: SetScores,
    rows: Sequence[Encoded],
    prompts: Sequence[tuple[int, ...]],
    begun: Sequence[tuple[int, ...]],
    loaded: Loaded,
) -> dict[str, Any]:
    """Everything besides the model that the numbers depend on: data, settings, and the source code of the metrics."""
    generation = asdict(loaded.generation)
    return {
        "prompts": json_digest([list(prompt) for prompt in prompts]),
        "begun": [len(one) for one in begun],
        "rows": rows_digest(rows),
        "references": json_digest(list(known.references or [])),
        "max_new_tokens": generation["max_new_tokens"],
        "batch_size": generation["batch_size"],
        "ends": list(end_tokens(loaded.model, loaded.tokenizer)),
        "batch_tokens": loaded.batch_tokens,
        "forget": known.forget,
        "metrics": sorted(_metric_digest(metric) for metric in metrics),
        "texts": loaded.keep_text,
    }


def _metric_digest(metric: Metric) -> str:
    module = inspect.getmodule(type(metric))
    code = inspect.getsource(module) if module is not None else ""
    settings: dict[str, Any] = asdict(metric) if is_dataclass(metric) and not isinstance(metric, type) else {}
    return text_digest("\n".join([type(metric).__qualname__, metric.label, repr(sorted(settings.items())), code]))


def _as_arrays(said: Sequence[str]) -> Arrays:
    pieces = [text.encode("utf-8") for text in said]
    return {
        _TEXT: np.frombuffer(b"".join(pieces), dtype=np.uint8),
        _ENDS: np.cumsum([len(piece) for piece in pieces], dtype=np.int64),
    }


def _as_texts(arrays: Arrays) -> list[str]:
    whole, ends = arrays[_TEXT].tobytes(), [0, *arrays[_ENDS].tolist()]
    return [whole[start:stop].decode("utf-8") for start, stop in pairwise(ends)]
