"""Load the model and tokenizer of a recipe, and merge its adapter."""

from __future__ import annotations

import copy
import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llm_forget.adapters.base_layers import base_layers, check_fit
from llm_forget.adapters.lora import Adapter, load_adapter
from llm_forget.config import ModelConfig
from llm_forget.errors import AdapterError, RecipeError
from llm_forget.model.adapted import merge_adapter
from llm_forget.model.gguf import gguf_in_package, import_gguf
from llm_forget.model.kinds import check_attention, check_config, check_forward
from llm_forget.model.weights import in_shards
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.extras import require_extra
from llm_forget.utils.heap import return_large_blocks
from llm_forget.utils.own_code import announce
from llm_forget.utils.pretrained import (
    check_counts,
    explained,
    load_pretrained,
    load_pretrained_tokenizer,
    read_model_config,
)
from llm_forget.utils.weight_files import weight_files

_HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")  # old ids, such as gpt2, have no owner

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def locate_model(name: str) -> str:
    """Convert a recipe's ``model.name`` to a name that ``from_pretrained`` accepts. A GGUF file is converted on first use.

    Args:
        name: a folder, a ``.gguf`` file or a hub id; the demo also uses ``package:NAME``, the GGUF file inside an
            installed Python package.

    Raises:
        RecipeError: the path does not exist, the folder has no model, or the package has no GGUF file.
        UserError: it is not certain which files of the folder are its weights.
    """
    if name.startswith("package:"):
        return str(import_gguf(gguf_in_package(name.removeprefix("package:"))))
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise RecipeError(f"model.name: {name} does not exist; give a GGUF file, a model folder or a hub id")
        return str(import_gguf(path))
    if path.is_dir():
        _check_folder(path)
        return str(path) if name.startswith("~") else name
    if path.exists():
        raise RecipeError(
            f"model.name: {name} is a file; give the folder that holds the model, a .gguf file or a hub id"
        )
    if path.is_absolute() or name.startswith((".", "~", "runs/")) or name.count("/") > 1:
        raise RecipeError(
            f"model.name: the folder {name} does not exist; give a model folder, a .gguf file or a hub id"
        )
    if near := _near_folders(name):
        raise RecipeError(f"model.name: the folder {name} does not exist, did you mean {' or '.join(near)}?")
    if not _HUB_ID.fullmatch(name):
        raise RecipeError(
            f"model.name: {name!r} is no folder, and no hub id: an id is owner/name or name, of letters, digits, '-', '_' and '.'"
        )
    return name


def _near_folders(name: str) -> list[str]:
    """Folders here whose names are like that of a missing one without an owner, which may be a mistake."""
    folders = [] if "/" in name else [one.name for one in Path().iterdir() if one.is_dir()]
    return difflib.get_close_matches(name, folders, n=2, cutoff=0.8)


def _check_folder(path: Path) -> None:
    """Check that a folder holds a model with weights that can be read, before anything is measured."""
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise RecipeError(
                f"model.name: {path} is the folder of an adapter; give its base as model.name, and the folder as model.adapter"
            )
        raise RecipeError(
            f"model.name: the folder {path} has no config.json, so it is not a model; check that the run that writes it "
            "has finished"
        )
    check_counts(path)
    weight_files(path)


def load_tokenizer(config: ModelConfig) -> Any:
    """Load the tokenizer. It always has a padding token; masks depend on positions, so any token works."""
    path = locate_model(config.name)
    _announce_code(config)
    return with_padding(
        load_pretrained_tokenizer(path, revision=config.revision, trust_remote_code=config.trust_remote_code)
    )


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer, or a copy with the EOS token as padding token if it has none."""
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_dtype(config: ModelConfig) -> torch.dtype:
    """The dtype of the weights that are not trained."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # bf16 halves memory everywhere, but is only faster on CPUs with bf16 instructions
    return torch.bfloat16 if cpu_multiplies_in_bf16() else torch.float32


def attention_for(config: ModelConfig, dtype: torch.dtype, *, on_cpu: bool) -> str | None:
    """The ``attn_implementation`` to pass to transformers; None for its default."""
    if config.attention != "auto":
        return config.attention
    return "eager" if on_cpu and dtype == torch.bfloat16 else None  # transformers knows which models have sdpa


def cpu_multiplies_in_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products. Without them bf16 is slower than fp32."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and ("avx512_bf16" in (text := flags.read_text()) or "amx_bf16" in text)


def load_model(config: ModelConfig, *, trainable: bool = False) -> tuple[Any, Any]:
    """``load_weights``, and the tokenizer.

    Returns:
        The model and its tokenizer.
    """
    # only once: for a GGUF file this computes digests of gigabytes
    located = replace(config, name=locate_model(config.name))
    return load_weights(located, trainable=trainable), load_tokenizer(located)


def load_weights(config: ModelConfig, *, trainable: bool = False) -> Any:
    """Load a model. ``config.adapter`` is merged in fp32 before the model is cast.

    Args:
        config: the recipe's model section.
        trainable: load in fp32, for full fine-tuning.

    Returns:
        The model, on this process's GPU if there is one. Otherwise the process returns freed memory sooner (``utils.heap``).

    Raises:
        RecipeError: the model does not exist or cannot be loaded, or the adapter was trained on another model.
    """
    path = locate_model(config.name)
    adapter = None if config.adapter is None else check_adapter_fits(path, config.adapter)
    dtype = torch.float32 if trainable else frozen_dtype(config)
    extra: dict[str, Any] = {}
    if config.quantization is not None:
        extra["quantization_config"] = _quantization(config, trainable)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        return_large_blocks()
    attention = attention_for(config, dtype, on_cpu=on_cpu)
    if attention is not None:
        extra["attn_implementation"] = attention
    check_model(replace(config, name=path))
    model = load_pretrained(
        path,
        dtype=torch.float32 if adapter else dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        **extra,
    )
    keep_gradients_through(model)
    if adapter is not None:
        merge_adapter(model, adapter)
        model.to(dtype)
    with explained("model", path):
        if torch.cuda.is_available() and config.quantization is None:
            model.to(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")
        # the weights of a sharded model are only whole inside its wrapper
        if not in_shards(model) and os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
            check_forward(model)
    return model


def _announce_code(config: ModelConfig) -> None:
    if config.trust_remote_code:
        announce(f"the model {config.name}, if it has any, because model.trust_remote_code is set")


def read_config(config: ModelConfig) -> Any:
    """The transformers config of a model.

    Raises:
        RecipeError: it cannot be read, or describes a model that nobody could build.
    """
    name = locate_model(config.name)
    _announce_code(config)
    return read_model_config(name, {"revision": config.revision, "trust_remote_code": config.trust_remote_code})


def check_model(config: ModelConfig) -> None:
    """Check from a model's config that it is a causal language model and has the recipe's attention.

    Raises:
        RecipeError: it is not, or it has not.
    """
    found = read_config(config)
    with explained("model", config.name):  # the config may hold anything
        check_config(found, config.name)
        check_attention(config.attention, found)


def keep_gradients_through(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on a CPU.

    It repacks them in the first forward pass without gradients. Repacked weights do not propagate gradients, so every block
    below the last would silently learn nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def refuse_quantised(*, trains: bool, merges: bool) -> None:
    """Raise an error for an operation that quantised weights do not support.

    Args:
        trains: the run trains the weights themselves, without an adapter.
        merges: the run merges an adapter into them.

    Raises:
        RecipeError: either of them is True.
    """
    if trains:
        raise RecipeError(
            "quantised weights cannot be trained in full; train an adapter, or load the model unquantised"
        )
    if merges:
        raise RecipeError(
            "an adapter cannot be merged into quantised weights (the result is wrong); merge it into the unquantised base with "
            "`llm-forget merge`, or load the model unquantised. In a fine-tuning recipe set merge: false"
        )


def _quantization(config: ModelConfig, trainable: bool) -> Any:
    refuse_quantised(trains=trainable, merges=config.adapter is not None)
    require_extra("bitsandbytes", "model.quantization", "quant")
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = frozen_dtype(config)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def check_adapter_fits(base: str, adapter: str) -> Adapter:
    """Check that an adapter was trained on this base, from file headers alone.

    Args:
        base: the base model. Only a local folder can be checked; for a hub id, merging checks the layers.
        adapter: the adapter's folder.

    Returns:
        The adapter.

    Raises:
        RecipeError: the recorded digest differs, or a layer is missing or has another shape.
    """
    found = load_adapter(adapter)
    if not Path(base).is_dir():
        return found
    if found.base.digest is not None and found.base.digest != weights_digest(base):
        raise RecipeError(
            f"the adapter {adapter} was trained on another base than {base} (the recorded weight digest differs); "
            "give the base that its README.md names"
        )
    try:
        check_fit(found, base_layers(base))
    except AdapterError as error:
        raise RecipeError(f"{adapter}: {error}") from error
    return found
