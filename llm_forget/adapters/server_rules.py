"""What each server does with an adapter, read from its files alone: a rule a server.

vLLM's were measured on vLLM 0.32.0 (tests/serving), PEFT's on PEFT itself; SGLang's and llama.cpp's are from their
documentation and sources.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_forget.adapters.card import VLLM_RANKS, vllm_rank
from llm_forget.adapters.lora_config import Problem, reversible, untargeted
from llm_forget.errors import AdapterError

VLLM_MEASURED = "0.32.0"
# vLLM leaves out what PEFT saves of an untouched embedding or head, and serves LoRA on both.
_VLLM_SERVES = ("embedding", "saved_base")
# vLLM does not look at these keys, and applies the factors as plain LoRA.
_VLLM_OVERLOOKS = ("peft_type", "unknown_key", "monteclora", "arrow", "kasa", "megatron")

Outcome = tuple[list[str], list[str]]  # reasons for which a server refuses; reasons for which it is wrong


@dataclass(frozen=True)
class Facts:
    """What the rules look at: the files' headers and configs, nothing loaded.

    Attributes:
        folder: the adapter's.
        config: its adapter_config.json.
        problems: what makes it more than plain LoRA.
        damaged: what no reader can make sense of in the config.
        misfits: where factors, config and base contradict each other.
        ranks: of each module, as stored.
        scalings: of each module, as PEFT computes them; empty where it could not.
        model: the base's config.json.
        max_rank: what vLLM is started with.
    """

    folder: Path
    config: Mapping[str, Any]
    problems: tuple[Problem, ...]
    damaged: tuple[str, ...]
    misfits: tuple[str, ...]
    ranks: Mapping[str, int]
    scalings: Mapping[str, float]
    model: Mapping[str, Any]
    max_rank: int


def _vllm(facts: Facts) -> Outcome:
    refused, wrong = list(facts.damaged), [f"{misfit}; it may load and answer all the same" for misfit in facts.misfits]
    for problem in facts.problems:
        if problem.feature in _VLLM_OVERLOOKS or _is_lora_ga(facts, problem):
            wrong.append(f"it overlooks that {problem}")
        elif problem.feature not in _VLLM_SERVES:
            refused.append(str(problem))
    largest = max([_config_rank(facts), *facts.ranks.values()])
    if largest > facts.max_rank:
        needed = vllm_rank(largest)
        remedy = f"start it with --max-lora-rank {needed}" if needed else f"it takes {VLLM_RANKS[-1]} at most"
        refused.append(f"rank {largest} is above its limit of {facts.max_rank}: {remedy}, or export at a lower rank")
    return refused, wrong


def _is_lora_ga(facts: Facts, problem: Problem) -> bool:
    """Of the initialisations that change the base, vLLM lets this one through, on a base that is not changed."""
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
    # An alpha of 0 counts as "not given" there, and the scale is then 1.
    reason = "it knows lora_alpha and each tensor's own rank, nothing else"
    return refused, wrong + _rescaled(facts, lambda module: alpha / facts.ranks[module] if alpha else 1.0, reason)


def _peft(facts: Facts) -> Outcome:
    unreadable = ("peft_type", "unknown_key", "unexpected")
    refused = [*facts.damaged, *facts.misfits]
    refused += [str(problem) for problem in facts.problems if problem.feature in unreadable]
    wrong = [
        str(problem)
        for problem in facts.problems
        # PEFT repeats PiSSA and its like when it loads; LoftQ's base it cannot make again.
        if problem.feature == "initialisation" and not reversible(facts.config.get("init_lora_weights"))
    ]
    try:
        stray = untargeted(facts.config, facts.ranks)
    except AdapterError as error:
        return [*refused, str(error)], wrong
    if stray:
        wrong.append(f"target_modules does not reach {stray[0]} (one of {len(stray)}): it drops these factors")
    return refused, wrong


# PEFT stands last: it is what all others are compared with. Ollama takes no adapters, and has no rule.
RULES: Mapping[str, Callable[[Facts], Outcome] | None] = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "llama.cpp": _llama_cpp,
    "Ollama": None,
    "PEFT": _peft,
}


def relies_on_patterns(facts: Facts) -> bool:
    """Whether some module has another scaling than the config's own alpha and rank would give it."""
    rank, alpha = _config_rank(facts), _config_alpha(facts)
    plain = alpha / (math.sqrt(rank) if facts.config.get("use_rslora") else rank)
    return any(not math.isclose(scaling, plain, rel_tol=1e-6) for scaling in facts.scalings.values())


def _plain_only(facts: Facts) -> Outcome:
    """What a server does that takes plain LoRA on the linear layers of the blocks and nothing else."""
    refused = [*facts.damaged, *facts.misfits]
    refused += [str(problem) for problem in facts.problems if problem.feature != "initialisation"]
    wrong = [str(problem) for problem in facts.problems if problem.feature == "initialisation"]
    heads = [module for module in facts.ranks if module.rpartition(".")[2] in ("lm_head", "embed_out")]
    if heads:
        tied = ", which this base ties to its embeddings" if facts.model.get("tie_word_embeddings") else ""
        refused.append(f"it changes {heads[0]}{tied}: a LoRA on the head is not served everywhere; leave it out")
    return refused, wrong


def _rescaled(facts: Facts, served: Callable[[str], float], reason: str) -> list[str]:
    """The complaint that modules are applied at another strength than trained, with the worst of them; or none."""
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
    return rank if isinstance(rank, int) and rank > 0 else 1


def _config_alpha(facts: Facts) -> float:
    alpha = facts.config.get("lora_alpha", 8)
    return alpha if isinstance(alpha, int | float) else math.nan


def _added_tokens(facts: Facts) -> list[str]:
    """Tokens of the adapter's added_tokens.json beyond the base's vocabulary: SGLang looks there and refuses them."""
    try:
        tokens = json.loads((facts.folder / "added_tokens.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    known = facts.model.get("vocab_size", 0)
    return [token for token, number in tokens.items() if number >= known] if isinstance(tokens, dict) else []
