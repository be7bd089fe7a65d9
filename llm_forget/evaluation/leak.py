"""Sample several answers to each prompt, and measure how often they reveal the right answer (leak@k)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from llm_forget.data.encode import encode_prompt
from llm_forget.data.examples import Example
from llm_forget.evaluation.aggregates.leak_at_k import LeakAtK, leak_at_k, reveals
from llm_forget.evaluation.passes.asking import end_tokens, samples_of
from llm_forget.evaluation.passes.cache import Arrays, remember
from llm_forget.evaluation.sets import Loaded, SamplingConfig
from llm_forget.evaluation.tokens import Floats, as_floats
from llm_forget.utils.digests import json_digest


def measure_leak(
    config: SamplingConfig,
    examples: Mapping[str, Sequence[Example]],
    loaded: Loaded,
    seed: int,
) -> tuple[dict[str, Any], dict[str, list[int | None]]]:
    """Sample answers to the prompts of each set, and compute leak@k.

    Args:
        config: number of samples and how to draw them.
        examples: forget set → its examples, for forget sets with prompts.
        loaded: the model.
        seed: seed of the samples.

    Returns:
        Set → ``at`` (k → leak@k) and the settings; and set → number of samples that reveal each example's answer, None
        if ROUGE cannot read the answer. Sampled texts are never returned.
    """
    found, counts = {}, {}
    for name, own in examples.items():
        revealed = _revealed(config, own, loaded, seed)
        counts[name] = [None if np.isnan(count) else int(count) for count in revealed.sum(-1)]
        found[name] = {"at": {str(k): _entry(revealed, k) for k in config.k}, **asdict(config), "seed": seed}
    return found, counts


def _entry(revealed: Floats, k: int) -> dict[str, Any]:
    return {**asdict(leak_at_k(revealed, k)), "forgotten": LeakAtK.forgotten}


def _revealed(config: SamplingConfig, examples: Sequence[Example], loaded: Loaded, seed: int) -> Floats:
    """(E, samples) whether each sample reveals the answer. The cache stores these flags and no text."""
    prompts = [encode_prompt(loaded.tokenizer, example, loaded.encoding) for example in examples]
    references = [example.answer for example in examples]

    def compute() -> Arrays:
        with loaded.meter.bar("samples drawn", len(prompts) * config.samples) as progress:
            said = samples_of(
                loaded.model,
                loaded.tokenizer,
                prompts,
                samples=config.samples,
                temperature=config.temperature,
                seed=seed,
                max_new_tokens=loaded.generation.max_new_tokens,
                batch_size=loaded.generation.batch_size,
                progress=progress,
                accelerator=loaded.accelerator,
            )
        return {"revealed": reveals(references, said, threshold=config.threshold)}

    parts = {
        "prompts": json_digest([list(prompt) for prompt in prompts]),
        "references": json_digest(references),
        "sampling": [config.samples, config.temperature, config.threshold, seed],
        "generation": [loaded.generation.max_new_tokens, loaded.generation.batch_size],
        "ends": list(end_tokens(loaded.model, loaded.tokenizer)),
    }
    return as_floats(remember(loaded.cache, loaded.accelerator, "leak", parts, compute)["revealed"])
