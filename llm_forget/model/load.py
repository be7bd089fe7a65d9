"""Load the base, merge what the recipe says, put a LoRA adapter on it, and find out what exactly it is (its digest)."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_forget.adapters.lora import load_adapter, read_base_record
from llm_forget.config import AdapterConfig, ModelConfig
from llm_forget.errors import RecipeError, UserError
from llm_forget.utils.digests import stored_tensors, weights_digest
from llm_forget.utils.files import file_digest, new_folder

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_IMPORT_RECORD = "imported_from.json"


def cache_folder() -> Path:
    """Where converted models are kept: ``LLM_FORGET_CACHE``, else ``~/.cache/llm-forget``."""
    return Path(os.environ.get("LLM_FORGET_CACHE", Path.home() / ".cache" / "llm-forget"))


def locate_model(name: str) -> str:
    """Turn a recipe's ``model.name`` into what ``from_pretrained`` takes; a GGUF is converted into a folder, once.

    Args:
        name: a folder, a ``.gguf`` file, ``package:NAME`` for the GGUF inside an installed Python package, or a hub id.

    Raises:
        RecipeError: a path that does not exist, or a package without a GGUF.
    """
    if name.startswith("package:"):
        return str(import_gguf(_gguf_in_package(name.removeprefix("package:"))))
    path = Path(name)
    if name.endswith(".gguf"):
        if not path.is_file():
            raise RecipeError(f"model.name: {name} does not exist; give a GGUF file, a model folder or a hub id")
        return str(import_gguf(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RecipeError(f"model.name: {name} is a folder without config.json, so not a model; was it completed?")
        return name
    if path.is_absolute() or name.startswith((".", "runs/")) or name.count("/") != 1:
        raise RecipeError(
            f"model.name: the folder {name} does not exist; give a model folder, a .gguf file or a hub id"
        )
    return name


def _gguf_in_package(package: str) -> Path:
    # find_spec does not import the package: what it would need to run is not wanted, only the file in it
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not files:
        pip_name = package.replace("_", "-")
        raise RecipeError(
            f"model.name: no GGUF file in a Python package {package!r}; install it with `pip install --no-deps {pip_name}`"
        )
    return files[0]


def import_gguf(path: Path) -> Path:
    """Dequantise a GGUF file into a safetensors folder in the cache, once; its digest is checked each time it is used.

    Raises:
        UserError: the ``gguf`` package is missing.
    """
    source = file_digest(path)
    folder = cache_folder() / "gguf" / f"{path.stem}-{source[:12]}"
    record = folder / _IMPORT_RECORD
    if record.is_file() and json.loads(record.read_text())["weights"] == weights_digest(folder):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading a GGUF file needs the gguf package: pip install llm-forget[demo]")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    with new_folder(folder) as partial:
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # otherwise the blocks stay packed and cannot be saved
        )
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(partial)
        facts = {"source": path.name, "sha256": source, "weights": weights_digest(partial)}
        (partial / _IMPORT_RECORD).write_text(json.dumps(facts, indent=1))
    return folder


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer, with a padding token; which one does not matter, since masks go by position."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        locate_model(config.name), revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return with_padding(tokenizer)


def with_padding(tokenizer: Any) -> Any:
    """The tokenizer, or a copy of it with a padding token where it has none."""
    if tokenizer.pad_token_id is None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_dtype(config: ModelConfig) -> torch.dtype:
    """The type of the weights that are not trained."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # bf16 halves the memory everywhere, and is faster on CPUs that multiply in it
    return torch.bfloat16 if cpu_multiplies_in_bf16() else torch.float32


def attention_for(config: ModelConfig, dtype: torch.dtype, *, on_cpu: bool) -> str | None:
    """The attention implementation to ask for; None leaves it to transformers."""
    if config.attention != "auto":
        return config.attention
    if on_cpu:
        return "eager" if dtype == torch.bfloat16 else "sdpa"
    return None


def cpu_multiplies_in_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products; without them bf16 is slower than fp32, not faster."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and ("avx512_bf16" in (text := flags.read_text()) or "amx_bf16" in text)


def load_model(config: ModelConfig, *, trainable: bool = False) -> tuple[Any, Any]:
    """Load model and tokenizer, with ``config.adapter`` merged in fp32 before any cast.

    Args:
        config: the recipe's model section.
        trainable: load in fp32, because these very weights will be trained.

    Raises:
        RecipeError: the model does not exist, or the adapter is for another one.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    name = locate_model(config.name)
    if config.adapter is not None:
        check_adapter_fits(name, config.adapter)
    dtype = torch.float32 if trainable else frozen_dtype(config)
    extra: dict[str, Any] = {}
    if config.quantization is not None:
        extra["quantization_config"] = _quantization(config, trainable)
    attention = attention_for(config, dtype, on_cpu=not torch.cuda.is_available())
    if attention is not None:
        extra["attn_implementation"] = attention
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=torch.float32 if config.adapter else dtype,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        **extra,
    )
    keep_gradients_through(model)
    if config.adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, config.adapter).merge_and_unload().to(dtype)
    if torch.cuda.is_available() and config.quantization is None:
        model.to(f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}")
    return model, load_tokenizer(replace(config, name=name))


def keep_gradients_through(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU, as it would at the first forward without gradient.

    No gradient flows through them ever after: blocks below the last would learn nothing, without a word.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization(config: ModelConfig, trainable: bool) -> Any:
    if trainable:
        raise RecipeError("quantised weights cannot be trained in full; set `adapter` or `model.quantization: null`")
    if config.adapter is not None:
        raise RecipeError(
            "model.adapter cannot be merged into quantised weights (the result is wrong); merge it first with "
            "`llm-forget merge` and give the merged folder as model.name"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("model.quantization needs bitsandbytes: pip install llm-forget[quant]")
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = frozen_dtype(config)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def check_adapter_fits(base: str, adapter: str) -> None:
    """Refuse an adapter made for another base, from file headers alone, before anything is loaded.

    The base must be a local folder for its shapes to be known; for a hub id PEFT's own check at loading has to do.

    Raises:
        RecipeError: a recorded digest differs, or a layer is missing or has another shape.
    """
    modules = load_adapter(adapter).modules
    if not Path(base).is_dir():
        return
    recorded = read_base_record(adapter).digest
    if recorded is not None and recorded != weights_digest(base):
        raise RecipeError(
            f"the adapter {adapter} was made for another base than {base} (the recorded digest of its weights differs); "
            "give the base it was trained on, named in its README.md"
        )
    weights = {name: stored.shape for name, stored in stored_tensors(base).items()}
    for name, factors in modules.items():
        shape = weights.get(f"{name}.weight")
        if shape != factors.shape:
            found = "has no such layer" if shape is None else f"has {shape} there"
            raise RecipeError(
                f"the adapter {adapter} does not fit {base}: it changes {name} with shape {factors.shape}, the base {found}; "
                "give the base it was trained on"
            )


def block_of(name: str) -> int | None:
    """The block that a module or parameter belongs to, from its name, or None: `model.layers.7.mlp.up_proj` is in block 7."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.", name)
    return int(found[1]) if found else None


def top_blocks(config: AdapterConfig, depth: int) -> range | None:
    """The blocks, from 0, that a recipe's ``adapter.top_share`` names in a model of so many; at least one, None for all."""
    count = max(1, round(config.top_share * depth))
    return None if count == depth else range(depth - count, depth)


def train_only_blocks(model: nn.Module, blocks: Collection[int]) -> None:
    """Freeze every weight outside some blocks, for full fine-tuning."""
    for name, value in model.named_parameters():
        value.requires_grad_(block_of(name) in blocks)


def _names_in_blocks(model: nn.Module, targets: str | list[str], blocks: Collection[int]) -> list[str]:
    """The modules in some blocks that ``adapter.target_modules`` means, as PEFT reads it: a word, endings, a pattern."""
    from transformers.pytorch_utils import Conv1D

    def meant(name: str, module: nn.Module) -> bool:
        if isinstance(targets, str) and targets.lower() == "all-linear":
            return isinstance(module, nn.Linear | Conv1D)
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(name == ending or name.endswith(f".{ending}") for ending in targets)

    return [name for name, module in model.named_modules() if block_of(name) in blocks and meant(name, module)]


def add_adapter(model: nn.Module, config: AdapterConfig, blocks: Collection[int] | None = None) -> Any:
    """Put a fresh LoRA adapter on the model: fp32 weights over a frozen base of any type.

    Args:
        model: the base.
        config: the recipe's adapter section.
        blocks: only these blocks get an adapter; None for those that ``config`` names.
    """
    from peft import LoraConfig, get_peft_model

    if blocks is None:
        inner: Any = model
        blocks = top_blocks(config, int(inner.config.get_text_config().num_hidden_layers))
    targets = config.target_modules
    try:
        # PEFT's preparation of a quantised base would hold embeddings and head in fp32: two more gigabytes for an 8B model,
        # and nothing gained, since they are frozen and multiplied under autocast.
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=targets if blocks is None else _names_in_blocks(model, targets, blocks),
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, lora)
    except (ValueError, re.error) as error:
        raise RecipeError(f"adapter.target_modules: {targets!r} fits no layer of the model: {error}") from error
    if next(model.parameters()).dtype == torch.bfloat16:
        # Everything runs under autocast then, which multiplies in bf16 anyway: casting each input to fp32 first is waste.
        for module in adapted.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    return adapted


def compile_blocks(model: Any) -> None:
    """``torch.compile`` for each decoder block, in place: they are alike, so one compilation serves all; widths may vary.

    Embedding and head stay as they are: the head reads other positions every time.

    Raises:
        RecipeError: the model's blocks are not where transformers' decoders have them.
    """
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise RecipeError(f"train.compile: {type(decoder).__name__} has no list of layers to compile; set it to false")
    for layer in layers:
        layer.compile(dynamic=True)
