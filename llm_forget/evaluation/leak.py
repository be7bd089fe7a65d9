"""Sampling of a suite: does the answer come out when a model is asked again and again?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from llm_forget.data.encode import encode_prompt
from llm_forget.data.examples import Example
from llm_forget.evaluation.generate import SamplingConfig, sample_answers
from llm_forget.evaluation.metrics.leak_at_k import leak_at_k, reveals
from llm_forget.evaluation.sets import Loaded


def measure_leak(
    config: SamplingConfig,
    results: dict[str, Any],
    examples: Mapping[str, Sequence[Example]],
    loaded: Loaded,
    seed: int,
) -> dict[str, Any]:
    """Sample answers to the prompts of the forget sets, and tell how often they reveal the right ones.

    Args:
        config: how often and how.
        results: the suite's results so far; how many samples reveal an example's answer is put into its scores, as
            ``leak_samples``.
        examples: the sets' examples.
        loaded: the model.
        seed: of the samples.

    Returns:
        Forget set → ``at`` (k → leak@k) and the settings. Never a sampled text.
    """
    found = {}
    for name in [name for name, one in results["sets"].items() if one["forget"]]:
        said = sample_answers(
            loaded.model,
            loaded.tokenizer,
            [encode_prompt(loaded.tokenizer, example, loaded.encoding) for example in examples[name]],
            samples=config.samples,
            temperature=config.temperature,
            seed=seed,
            max_new_tokens=loaded.generation.max_new_tokens,
            batch_size=loaded.generation.batch_size,
            accelerator=loaded.accelerator,
        )
        revealed = reveals([example.answer for example in examples[name]], said, threshold=config.threshold)
        for scores, count in zip(results["sets"][name]["examples"].values(), revealed.sum(-1), strict=True):
            scores["leak_samples"] = None if np.isnan(count) else int(count)
        found[name] = {"at": {str(k): asdict(leak_at_k(revealed, k)) for k in config.k}, **asdict(config), "seed": seed}
    return found
