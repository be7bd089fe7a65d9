"""What an adapter_config.json says: the scaling of each module, read as PEFT reads it, and what is not plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.errors import AdapterError

Config = Mapping[str, Any]

# These start B at zero, or start B·A at zero, and leave the base alone: the file then holds the whole change.
_HARMLESS_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# These take scaling·B₀·A₀ out of the base before training: subtracting the initial adapter puts it back.
_REVERSIBLE_INITIALISATIONS = ("pissa", "olora", "corda", "lora_ga")

# Keys without effect on ΔW = scaling·B·A once the file is written; everything below is either read here or refused.
_HARMLESS_KEYS = frozenset(
    [
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "init_lora_weights",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "velora_config",
        "runtime_config",
        "ensure_weight_tying",
    ]
)


@dataclass(frozen=True)
class Problem:
    """Why an adapter is not plain LoRA on linear layers.

    Attributes:
        feature: a stable word for it, such as ``dora``.
        reason: what was found and why it cannot be read as B·A.
        remedy: what to do.
    """

    feature: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_RETRAIN = "train again without it"
_SAVE_NO_EMBEDDING = "leave embeddings and head out of target_modules, or save with save_embedding_layers=False"
# feature, config key, what it does. Truthy means in use.
_REFUSED_KEYS = (
    ("dora", "use_dora", "DoRA adds a magnitude that multiplies the base weights, so the change is no product B·A"),
    ("modules_to_save", "modules_to_save", "whole modules were trained beside the LoRA factors"),
    ("trainable_tokens", "trainable_token_indices", "single token embeddings were trained beside the LoRA factors"),
    ("lora_bias", "lora_bias", "B carries a bias, which is no part of B·A"),
    ("target_parameters", "target_parameters", "LoRA on bare parameters lays its factors out expert by expert"),
    ("alora", "alora_invocation_tokens", "an activated LoRA works only after its invocation tokens"),
    ("qalora", "use_qalora", "QA-LoRA pools the input, so A does not see the layer's own features"),
    ("monteclora", "monteclora_config", "the factors are sampled anew in every forward"),
    ("bdlora", "use_bdlora", "the factors are stored block by block"),
    ("arrow", "arrow_config", "several adapters are routed token by token"),
    ("kasa", "kasa_config", "KaSA cuts singular values out of the base and puts a diagonal between B and A"),
    ("layer_replication", "layer_replication", "layers are repeated, so the base model is another one"),
    ("megatron", "megatron_config", "the factors are split for Megatron's parallel layers"),
)


def config_problems(config: Config) -> list[Problem]:
    """Everything in a config that makes its adapter more than ΔW = scaling·B·A on linear layers; empty when plain."""
    kind = config.get("peft_type")
    if kind != "LORA":
        return [
            Problem(
                "peft_type", f"its peft_type is {kind!r}, and only LORA is supported", "train a LoRA adapter instead"
            )
        ]
    problems = [
        Problem(feature, f"{key}={_short(config[key])}: {why}", _RETRAIN)
        for feature, key, why in _REFUSED_KEYS
        if config.get(key)
    ]
    if config.get("bias", "none") != "none":
        reason = (
            f"bias={config['bias']!r}: biases of the base were trained too, and only 'none' can be added or taken away"
        )
        problems.append(Problem("bias", reason, "train again with bias='none'"))
    problems += _initialisation_problems(config.get("init_lora_weights", True))
    known = _HARMLESS_KEYS | {key for _, key, _ in _REFUSED_KEYS}
    problems += [
        Problem(
            "unknown_key",
            f"{key}={_short(value)} is not known here and could change what the factors mean",
            "remove the key from adapter_config.json if it does not, or update llm-forget",
        )
        for key, value in config.items()
        if key not in known and value
    ]
    return problems


def _initialisation_problems(initialisation: object) -> list[Problem]:
    word = initialisation.lower() if isinstance(initialisation, str) else initialisation  # PEFT reads both cases
    if any(word is allowed or word == allowed for allowed in _HARMLESS_INITIALISATIONS):
        return []
    reason = (
        f"init_lora_weights={initialisation!r} changes the base weights, so this adapter fits a base that is not yours"
    )
    if reversible(initialisation):
        remedy = (
            "save the untrained adapter too and use undo_initialisation(trained, untrained), or save it from PEFT with "
            "path_initial_model_for_weight_conversion=…"
        )
    else:
        remedy = "train again with init_lora_weights=True"
    return [Problem("initialisation", reason, remedy)]


def reversible(initialisation: object) -> bool:
    """True when an initialisation took exactly its own scaling·B₀·A₀ out of the base."""
    return isinstance(initialisation, str) and initialisation.lower().startswith(_REVERSIBLE_INITIALISATIONS)


def tensor_problems(names: Iterable[str]) -> list[Problem]:
    """What a file holds besides the A and B of linear layers, one problem a kind of tensor, with an example."""
    kinds = (
        ("dora", "lora_magnitude_vector", "DoRA's magnitudes", "train again with use_dora=False"),
        (
            "embedding",
            "lora_embedding_",
            "LoRA on an embedding",
            "train again with linear layers as target_modules only",
        ),
        ("lora_bias", ".lora_B.bias", "a bias on B", "train again with lora_bias=False"),
        (
            "trainable_tokens",
            "trainable_tokens",
            "trained token embeddings",
            "train again without trainable_token_indices",
        ),
        ("modules_to_save", "modules_to_save", "a whole module", "train again without modules_to_save"),
        ("saved_base", ".embed_tokens.base_layer.weight", "the base's own embedding", _SAVE_NO_EMBEDDING),
        ("saved_base", ".lm_head.base_layer.weight", "the base's own head", _SAVE_NO_EMBEDDING),
        ("full_weights", ".base_layer.", "a whole weight of the base", _SAVE_NO_EMBEDDING),
        ("full_weights", ".embed_tokens.", "a whole weight of the base", _SAVE_NO_EMBEDDING),
        ("full_weights", ".lm_head.", "a whole weight of the base", _SAVE_NO_EMBEDDING),
        ("unexpected", "", "something that is no A or B of a linear layer", "save the adapter again with PEFT"),
    )
    strangers = [name for name in names if not LORA_TENSOR.fullmatch(name) or ".base_layer." in name]
    problems: dict[str, Problem] = {}
    for name in strangers:
        feature, _, what, remedy = next(kind for kind in kinds if kind[1] in name)
        problems.setdefault(feature, Problem(feature, f"the tensor {name} is {what}", remedy))
    return list(problems.values())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def matching_key(patterns: Iterable[str], module: str) -> str:
    """The key of a pattern mapping that PEFT uses for a module: the first whose expression ends its name.

    Source: peft.utils.other.get_pattern_key.
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def rank_and_scaling(config: Config, module: str) -> tuple[int, float]:
    """Rank and scaling of one module: alpha/r, or alpha/√r with rsLoRA, patterns honoured as PEFT matches them.

    Raises:
        AdapterError: a rank, an alpha or a pattern that PEFT could not use.
    """
    ranks, alphas = _pattern(config, "rank_pattern"), _pattern(config, "alpha_pattern")
    try:
        rank = ranks.get(matching_key(ranks, module), config.get("r", 8))
        alpha = alphas.get(matching_key(alphas, module), config.get("lora_alpha", 8))
    except re.error as error:
        raise AdapterError(
            f"adapter_config.json: {error.pattern!r} in rank_pattern or alpha_pattern is no regular expression "
            f"({error}); correct it."
        ) from error
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"adapter_config.json: rank {rank!r} for {module}; a whole number of at least 1 is needed.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"adapter_config.json: lora_alpha {alpha!r} for {module}; a finite number is needed.")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(config: Config, key: str) -> Mapping[str, Any]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, Mapping):
        raise AdapterError(f"adapter_config.json: {key} is {_short(pattern)}; a mapping from module names is needed.")
    return pattern


def explicit_targets(config: Config, modules: Iterable[str]) -> list[str]:
    """Target names that pick exactly these modules: the config's own list, or every full name if it is too wide."""
    targets = config.get("target_modules")
    narrowed = config.get("layers_to_transform") is not None or config.get("exclude_modules")
    if isinstance(targets, list | tuple | set) and targets and not narrowed:
        return sorted(targets)
    return sorted(modules)


def untargeted(config: Config, modules: Iterable[str]) -> list[str]:
    """The modules that a config's target_modules does not reach: PEFT drops their tensors with a warning at most.

    Raises:
        AdapterError: target_modules is a text and no regular expression.
    """
    targets = config.get("target_modules")
    if isinstance(targets, str):
        try:
            return [] if targets.lower() == "all-linear" else [m for m in modules if not re.fullmatch(targets, m)]
        except re.error as error:
            raise AdapterError(
                f"adapter_config.json: target_modules {_short(targets)} is no regular expression ({error}); correct it."
            ) from error
    if not targets:
        return []
    return [m for m in modules if not any(m == target or m.endswith(f".{target}") for target in targets)]


def plain_config(ranks: Mapping[str, int], targets: Iterable[str], like: Config) -> dict[str, Any]:
    """The config of a plain LoRA adapter whose scaling is 1 everywhere: alpha = rank, module by module.

    Args:
        ranks: rank of each module; one rank for all gives a config without patterns.
        targets: target names.
        like: where task type, weight layout, base name and revision are taken from.
    """
    rank = max(ranks.values())
    # '^' keeps a full name from also matching a longer one that ends in it.
    pattern = {f"^{re.escape(module)}": r for module, r in sorted(ranks.items()) if r != rank}
    return {
        "peft_type": "LORA",
        "task_type": like.get("task_type") or "CAUSAL_LM",
        "base_model_name_or_path": like.get("base_model_name_or_path"),
        "revision": like.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "rank_pattern": dict(pattern),
        "alpha_pattern": dict(pattern),
        "fan_in_fan_out": bool(like.get("fan_in_fan_out")),
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
