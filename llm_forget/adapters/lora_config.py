"""Interpret an adapter_config.json as PEFT does: rank and scaling of each module, and everything that is not plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_forget.adapters.patterns import matches
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

_LARGEST_RANK = 1 << 20
_LARGEST_ALPHA = 1e12  # larger ones overflow in fp32 with any factors

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
    keys = list(patterns)
    found = matches(keys, [module], "end", "rank_pattern or alpha_pattern")[0]
    return keys[found[0]] if found else module


def rank_and_scaling(config: Config, module: str) -> tuple[int, float]:
    """Rank and scaling of one module; as ``ranks_and_scalings``."""
    return ranks_and_scalings(config, [module])[module]


def ranks_and_scalings(config: Config, modules: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Rank and scaling of each module: alpha/r, or alpha/√r with rsLoRA, with patterns matched as in PEFT.

    Raises:
        AdapterError: a rank, an alpha or a pattern is invalid.
    """
    names = list(modules)
    ranks = _by_pattern(config, "rank_pattern", names, config.get("r", 8))
    alphas = _by_pattern(config, "alpha_pattern", names, config.get("lora_alpha", 8))
    return {name: _scaling(config, name, ranks[name], alphas[name]) for name in names}


def _scaling(config: Config, module: str, rank: object, alpha: object) -> tuple[int, float]:
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= _LARGEST_RANK:
        raise AdapterError(f"adapter_config.json: rank {_short(rank)} for {module}; give a whole number of 1 or more.")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) <= _LARGEST_ALPHA:
        raise AdapterError(
            f"adapter_config.json: lora_alpha {_short(alpha)} for {module}; give a finite number of {_LARGEST_ALPHA:.0e} at most."
        )
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(config: Config, key: str, names: list[str], default: object) -> dict[str, object]:
    """The value of each module: that of the first key that matches it, or the default."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, Mapping):
        raise AdapterError(f"adapter_config.json: {key} is {_short(pattern)}; give a mapping from module names.")
    keys = list(pattern)
    found = matches(keys, names, "end", f"adapter_config.json: in {key}")
    return {name: pattern[keys[places[0]]] if places else default for name, places in zip(names, found, strict=True)}


def ambiguous_alpha(config: Config, modules: Iterable[str]) -> str | None:
    """The first module that several keys of alpha_pattern match with different values; None if there is none.

    Raises:
        AdapterError: alpha_pattern is invalid.
    """
    names, pattern = list(modules), config.get("alpha_pattern") or {}
    keys = list(pattern)
    found = matches(keys, names, "end", "adapter_config.json: in alpha_pattern")
    different = (name for name, places in zip(names, found, strict=True) if len({pattern[keys[p]] for p in places}) > 1)
    return next(different, None)


def explicit_targets(config: Config, modules: Iterable[str]) -> list[str]:
    """Target names that select exactly these modules: the config's own list, or all full names if that selects more."""
    targets = config.get("target_modules")
    narrowed = config.get("layers_to_transform") is not None or config.get("exclude_modules")
    if isinstance(targets, list | tuple | set) and targets and not narrowed:
        return sorted(targets)
    return sorted(modules)


def untargeted(config: Config, modules: Iterable[str]) -> list[str]:
    """The modules that PEFT does not adapt by this config. It drops their tensors, with a warning at most.

    Source: peft.tuners.tuners_utils.check_target_module_exists.

    Raises:
        AdapterError: target_modules, exclude_modules or the choice of layers is invalid, or takes too long to match.
    """
    names = list(modules)
    excluded = _named(config, "exclude_modules", names) if config.get("exclude_modules") else set()
    targets = config.get("target_modules")
    if isinstance(targets, str) and targets.lower() == "all-linear":
        reached = set(names)
    elif targets is None:
        return [name for name in names if name in excluded]  # PEFT's own list for the architecture
    else:
        reached = _named(config, "target_modules", names)
        if not isinstance(targets, str):
            reached = {name for name in reached if _in_layers(config, name)}
    return [name for name in names if name in excluded or name not in reached]


def _named(config: Config, key: str, names: list[str]) -> set[str]:
    """The modules that a key names: by one regular expression for the full name, or a list of endings."""
    given = config[key]
    if isinstance(given, str):
        found = matches([given], names, "full", f"adapter_config.json: {key}")
        return {name for name, places in zip(names, found, strict=True) if places}
    if not isinstance(given, list | tuple | set) or not all(isinstance(one, str) for one in given):
        raise AdapterError(
            f"adapter_config.json: {key} is {_short(given)}; give a list of module names, or one regular expression."
        )
    endings = set(given)
    return {name for name in names if any(ending in endings for ending in _endings(name))}


def _endings(name: str) -> list[str]:
    """A name, and what follows each of its dots: ``a.b`` gives ``a.b`` and ``b``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _in_layers(config: Config, name: str) -> bool:
    """Whether layers_to_transform selects a module's layer. layers_pattern names the list of layers before the number."""
    chosen = config.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    numbers = chosen if isinstance(chosen, list) else [chosen]
    lists = config.get("layers_pattern") or None
    lists = [lists] if isinstance(lists, str) else lists
    known = lists is None or (isinstance(lists, list) and all(isinstance(one, str) for one in lists))
    if not known or not all(isinstance(number, int) for number in numbers):
        raise AdapterError(
            f"adapter_config.json: layers_to_transform is {_short(chosen)} and layers_pattern {_short(lists)}; give layer "
            "numbers, and the name of the list of layers."
        )
    parts = name.split(".")
    for place in range(1 if lists is None else 0, len(parts) - 2):
        if parts[place + 1].isdecimal() and (lists is None or _is_list(lists, parts[: place + 1])):
            return int(parts[place + 1]) in numbers
    return False


def _is_list(lists: list[str], parts: list[str]) -> bool:
    """Whether the path of a module list ends in one of the patterns."""
    found = matches(lists, [".".join(parts)], "end", "adapter_config.json: in layers_pattern")
    return bool(found[0])


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
