"""Interpret an adapter_config.json as PEFT does: rank and scaling of each module, and everything that is not plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.errors import AdapterError

Config = Mapping[str, Any]

# These start with B·A = 0 and do not change the base, so the file contains the whole change.
_HARMLESS_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

# Keys that do not affect ΔW = scaling·B·A of a saved adapter, or that are read below.
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
        feature: a stable identifier, such as ``dora``.
        reason: the finding, and why it is not B·A.
        remedy: the action to take.
    """

    feature: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_RETRAIN = "train again without it"
_SAVE_NO_EMBEDDING = "leave embeddings and head out of target_modules, or save with save_embedding_layers=False"
# Feature, config key, reason. A truthy value means that the feature is in use.
_REFUSED_KEYS = (
    ("dora", "use_dora", "DoRA adds a magnitude that multiplies the base weights, so the change is not a product B·A"),
    ("modules_to_save", "modules_to_save", "whole modules were trained in addition to the LoRA factors"),
    (
        "trainable_tokens",
        "trainable_token_indices",
        "single token embeddings were trained in addition to the LoRA factors",
    ),
    ("lora_bias", "lora_bias", "B has a bias, which is not part of B·A"),
    ("target_parameters", "target_parameters", "LoRA on bare parameters stores its factors expert by expert"),
    ("alora", "alora_invocation_tokens", "an activated LoRA is only active after its invocation tokens"),
    ("qalora", "use_qalora", "QA-LoRA pools the input, so A does not see the layer's own features"),
    ("monteclora", "monteclora_config", "the factors are sampled anew in every forward"),
    ("bdlora", "use_bdlora", "the factors are stored block by block"),
    ("arrow", "arrow_config", "several adapters are routed token by token"),
    ("kasa", "kasa_config", "KaSA cuts singular values out of the base and puts a diagonal between B and A"),
    ("layer_replication", "layer_replication", "layers are repeated, so the base is another model"),
    ("megatron", "megatron_config", "the factors are split for Megatron's parallel layers"),
)


def config_problems(config: Config) -> list[Problem]:
    """Everything in a config that is more than ΔW = scaling·B·A on linear layers; empty for plain LoRA."""
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
        reason = f"bias={config['bias']!r}: biases of the base were trained too, which are not part of B·A"
        problems.append(Problem("bias", reason, "train again with bias='none'"))
    problems += _initialisation_problems(config.get("init_lora_weights", True))
    known = _HARMLESS_KEYS | {key for _, key, _ in _REFUSED_KEYS}
    problems += [
        Problem(
            "unknown_key",
            f"{key}={_short(value)} is not known here and could change the meaning of the factors",
            "remove the key from adapter_config.json if it has no effect, or update llm-forget",
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
        f"init_lora_weights={initialisation!r} changes the base weights, so this adapter does not fit the original base"
    )
    remedy = (
        "train again with init_lora_weights=True; PiSSA, OLoRA, CorDA and LoRA-GA can also be saved from PEFT with "
        "path_initial_model_for_weight_conversion=…"
    )
    return [Problem("initialisation", reason, remedy)]


def tensor_problems(names: Iterable[str]) -> list[Problem]:
    """Tensors that are not A or B of a linear layer: one problem per kind, with an example."""
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
        ("unexpected", "", "not an A or B of a linear layer", "save the adapter again with PEFT"),
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
    """The key of a pattern mapping that PEFT uses for a module: the first that matches the end of its name.

    Source: peft.utils.other.get_pattern_key.
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def rank_and_scaling(config: Config, module: str) -> tuple[int, float]:
    """Rank and scaling of one module: alpha/r, or alpha/√r with rsLoRA, with patterns matched as in PEFT.

    Raises:
        AdapterError: a rank, an alpha or a pattern is invalid.
    """
    ranks, alphas = _pattern(config, "rank_pattern"), _pattern(config, "alpha_pattern")
    try:
        rank = ranks.get(matching_key(ranks, module), config.get("r", 8))
        alpha = alphas.get(matching_key(alphas, module), config.get("lora_alpha", 8))
    except re.error as error:
        raise AdapterError(
            f"adapter_config.json: {error.pattern!r} in rank_pattern or alpha_pattern is not a regular expression "
            f"({error}); correct it."
        ) from error
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise AdapterError(f"adapter_config.json: rank {rank!r} for {module}; give a whole number of 1 or more.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"adapter_config.json: lora_alpha {alpha!r} for {module}; give a finite number.")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(config: Config, key: str) -> Mapping[str, Any]:
    pattern = config.get(key) or {}
    if not isinstance(pattern, Mapping):
        raise AdapterError(f"adapter_config.json: {key} is {_short(pattern)}; give a mapping from module names.")
    return pattern


def explicit_targets(config: Config, modules: Iterable[str]) -> list[str]:
    """Target names that select exactly these modules: the config's own list, or all full names if that selects more."""
    targets = config.get("target_modules")
    narrowed = config.get("layers_to_transform") is not None or config.get("exclude_modules")
    if isinstance(targets, list | tuple | set) and targets and not narrowed:
        return sorted(targets)
    return sorted(modules)


def untargeted(config: Config, modules: Iterable[str]) -> list[str]:
    """The modules that a config's target_modules does not match. PEFT drops their tensors, with a warning at most.

    Raises:
        AdapterError: target_modules is a string but not a valid regular expression.
    """
    targets = config.get("target_modules")
    if isinstance(targets, str):
        try:
            return [] if targets.lower() == "all-linear" else [m for m in modules if not re.fullmatch(targets, m)]
        except re.error as error:
            raise AdapterError(
                f"adapter_config.json: target_modules {_short(targets)} is not a regular expression ({error}); correct it."
            ) from error
    if not targets:
        return []
    return [m for m in modules if not any(m == target or m.endswith(f".{target}") for target in targets)]


def plain_config(ranks: Mapping[str, int], targets: Iterable[str], like: Config) -> dict[str, Any]:
    """The config of a plain LoRA adapter with scaling 1: alpha equals the rank of each module.

    Args:
        ranks: the rank of each module; equal ranks give a config without patterns.
        targets: target names.
        like: the config that gives task type, weight layout, base name and revision.
    """
    rank = max(ranks.values())
    # '^' stops a full name from matching a longer one that ends in it.
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
