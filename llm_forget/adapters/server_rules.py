"""Predict how each server treats an adapter from its files alone, with one rule per server.

The rule for vLLM was measured on vLLM 0.32.0 (tests/serving), the rule for PEFT on PEFT itself. Those for SGLang and llama.cpp
come from their documentation and sources.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.adapters.card import VLLM_RANKS, vllm_rank
from llm_forget.adapters.lora_config import Problem, untargeted
from llm_forget.errors import AdapterError

VLLM_MEASURED = "0.32.0"
# vLLM ignores the untouched embedding or head that PEFT saves, and serves LoRA on both.
_VLLM_SERVES = ("embedding", "saved_base")
# vLLM ignores these keys and applies the factors as plain LoRA.
_VLLM_OVERLOOKS = ("peft_type", "unknown_key", "monteclora", "arrow", "kasa", "megatron")

_LARGEST = 1e300  # of a rank or alpha that can be divided as a float

Outcome = tuple[list[str], list[str]]  # reasons to refuse; reasons why the applied change is wrong


@dataclass(frozen=True)
class Facts:
    """The input of the rules: configs and file headers. No weights are loaded.

    Attributes:
        folder: the adapter's folder.
        config: its adapter_config.json.
        problems: why it is not plain LoRA.
        damaged: errors in the config that no reader could handle.
        misfits: contradictions between factors, config and base.
        dropped: layers that the base lacks.
        ranks: the stored rank of each module.
        scalings: the scaling of each module, as PEFT computes it; empty if it cannot.
        model: the base's config.json.
        max_rank: vLLM's --max-lora-rank.
    """

    folder: Path
    config: Mapping[str, Any]
    problems: tuple[Problem, ...]
    damaged: tuple[str, ...]
    misfits: tuple[str, ...]
    dropped: tuple[str, ...]
    ranks: Mapping[str, int]
    scalings: Mapping[str, float]
    model: Mapping[str, Any]
    max_rank: int


def _vllm(facts: Facts) -> Outcome:
    refused = list(facts.damaged)
    wrong = [f"{misfit}; it may load and answer nevertheless" for misfit in (*facts.misfits, *facts.dropped)]
    for problem in facts.problems:
        if problem.feature in _VLLM_OVERLOOKS or _is_lora_ga(facts, problem):
            wrong.append(f"it ignores this: {problem}")
        elif problem.feature not in _VLLM_SERVES:
            refused.append(str(problem))
    largest = max([_config_rank(facts), *facts.ranks.values()])
    if largest > facts.max_rank:
        needed = vllm_rank(largest)
        remedy = f"start it with --max-lora-rank {needed}" if needed else f"it accepts {VLLM_RANKS[-1]} at most"
        refused.append(f"rank {largest} is above its limit of {facts.max_rank}: {remedy}, or export at a lower rank")
    return refused, wrong


def _is_lora_ga(facts: Facts, problem: Problem) -> bool:
    """Whether it is LoRA-GA, which vLLM accepts although it does not change the base as LoRA-GA requires."""
    return problem.feature == "initialisation" and str(facts.config["init_lora_weights"]).lower().startswith("lora_ga")


def _sglang(facts: Facts) -> Outcome:
    refused, wrong = _plain_only(facts)
    added = _added_tokens(facts)
    if added:
        refused.append(f"added_tokens.json adds {', '.join(added[:3])}: remove the file if the base knows these tokens")
    alpha, rank = _config_alpha(facts), _config_rank(facts)
    return refused, wrong + _rescaled(facts, lambda _: alpha / rank, "it always scales by alpha/r of the config")


def _llama_cpp(facts: Facts) -> Outcome:
    refused, wrong = _plain_only(facts)
    alpha = _config_alpha(facts)
    # llama.cpp takes an alpha of 0 as "not given" and scales by 1.
    reason = "it reads only lora_alpha and each tensor's own rank"
    return refused, wrong + _rescaled(facts, lambda module: alpha / facts.ranks[module] if alpha else 1.0, reason)


def _peft(facts: Facts) -> Outcome:
    unreadable = ("peft_type", "unknown_key", "unexpected")
    refused = [*facts.damaged, *facts.misfits]
    refused += [str(problem) for problem in facts.problems if problem.feature in unreadable]
    wrong = [
        str(problem)
        for problem in facts.problems
        if problem.feature == "initialisation" and not _peft_repeats(facts.config.get("init_lora_weights"))
    ]
    wrong += [f"{layer}; it drops these factors" for layer in facts.dropped]
    try:
        stray = untargeted(facts.config, facts.ranks)
    except AdapterError as error:
        return [*refused, str(error)], wrong
    if stray:
        wrong.append(f"target_modules does not reach {stray[0]} (one of {len(stray)}): it drops these factors")
    return refused, wrong


def _peft_repeats(initialisation: object) -> bool:
    """Whether PEFT changes the base in the same way again when it loads the adapter. It cannot do so for LoftQ."""
    return isinstance(initialisation, str) and initialisation.lower().startswith(("pissa", "olora", "corda", "lora_ga"))


# PEFT is last: it is the reference for all others. Ollama takes no adapters, so it has no rule.
RULES: Mapping[str, Callable[[Facts], Outcome] | None] = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "llama.cpp": _llama_cpp,
    "Ollama": None,
    "PEFT": _peft,
}


def relies_on_patterns(facts: Facts) -> bool:
    """Whether some module's scaling differs from alpha/r (or alpha/√r) of the config."""
    rank, alpha = _config_rank(facts), _config_alpha(facts)
    plain = alpha / (math.sqrt(rank) if facts.config.get("use_rslora") else rank)
    return any(not math.isclose(scaling, plain, rel_tol=1e-6) for scaling in facts.scalings.values())


def _plain_only(facts: Facts) -> Outcome:
    """The outcome for a server that takes only plain LoRA on the linear layers of the blocks."""
    refused = [*facts.damaged, *facts.misfits, *facts.dropped]
    refused += [str(problem) for problem in facts.problems if problem.feature != "initialisation"]
    wrong = [str(problem) for problem in facts.problems if problem.feature == "initialisation"]
    heads = [module for module in facts.ranks if module.rpartition(".")[2] in ("lm_head", "embed_out")]
    if heads:
        tied = ", which this base ties to its embeddings" if facts.model.get("tie_word_embeddings") else ""
        refused.append(f"it changes {heads[0]}{tied}: not every server supports a LoRA on the head; leave it out")
    return refused, wrong


def _rescaled(facts: Facts, served: Callable[[str], float], reason: str) -> list[str]:
    """A message if modules are applied at another strength than trained, naming the worst one; else empty."""
    ratios = {
        module: served(module) / trained if trained else math.inf
        for module, trained in facts.scalings.items()
        if not math.isclose(served(module), trained, rel_tol=1e-6)
    }
    if not ratios:
        return []
    worst = max(ratios, key=lambda module: abs(math.log(abs(ratios[module]) or 1e-300)))
    return [
        f"{reason}: {len(ratios)} of {len(facts.ranks)} modules are applied at another strength, {worst} at "
        f"{ratios[worst]:.4g} times the trained one; export it first"
    ]


def _config_rank(facts: Facts) -> int:
    rank = facts.config.get("r", 8)
    return rank if isinstance(rank, int) and 0 < rank < _LARGEST else 1


def _config_alpha(facts: Facts) -> float:
    alpha = facts.config.get("lora_alpha", 8)
    return float(alpha) if isinstance(alpha, int | float) and abs(alpha) < _LARGEST else math.nan


def _added_tokens(facts: Facts) -> list[str]:
    """Tokens in the adapter's added_tokens.json beyond the base's vocabulary, which SGLang refuses."""
    try:
        tokens = json.loads((facts.folder / "added_tokens.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    known = facts.model.get("vocab_size", 0)
    if not isinstance(tokens, dict) or not isinstance(known, int):
        return []
    return [token for token, number in tokens.items() if isinstance(number, int) and number >= known]
