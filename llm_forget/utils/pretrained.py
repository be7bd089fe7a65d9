"""Load a pretrained model: the one place that calls ``from_pretrained`` for weights.

Transformers initializes missing weights at random, attaches adapters that it finds, and reads pickles. Here each of these is an
error that names the folder and the remedy, and so is every failure of the library. Loading reads no data rows, so the library's
own message can be shown.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llm_forget.errors import Interrupted, RecipeError, UserError
from llm_forget.utils.digests import StoredTensor, stored_tensors
from llm_forget.utils.weight_files import config_sections, model_config

_log = logging.getLogger("llm_forget")

_MOST_LAYERS = 10_000  # far above any published model; building that many takes minutes before anything else fails
_COUNT = re.compile(r"(n|num)_(\w+_)?(layers?|blocks|experts)|n_layer|depth|(en|de)coder_layers")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_FLOATS = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
_SHOWN = 3  # tensors that a message names
_LONGEST = 400  # characters of a library's message

# Part of a library's message, and what to do about it.
_REMEDIES = (
    ("trust_remote_code", "if you trust the code in it, set model.trust_remote_code: true"),
    ("bitsandbytes", "install it with pip install 'llm-forget[quant]', or load an unquantised copy of the model"),
    ("flash", "install the flash-attn package, or set model.attention: sdpa or eager"),
    ("kernels", "install the kernels package, or use a copy of the model that does not ask for it"),
    ("attn_implementation", "set model.attention: eager"),
    ("gated", "ask for access on its page, and log in with `hf auth login`"),
    ("use_safetensors", "its weights are pickled: save a copy with model.save_pretrained(folder) where you trust them"),
    ("safetensors", "copy or download the model again"),
    ("out of memory", "use a smaller dtype, model.quantization or a larger machine"),
    ("t allocate memory", "use a smaller dtype, model.quantization or a larger machine"),
    ("offline", "download the model first, or give a folder"),
    ("connect", "download the model first, or give a folder"),
    ("huggingface.co", "give a model folder, a .gguf file, or the hub id of a model that you can read"),
    ("repo id", "give a model folder, a .gguf file, or a hub id such as owner/name"),
    ("does not recognize this architecture", "update transformers, or correct model_type in config.json"),
    ("pip install", "install what it asks for"),
)
_OTHERWISE = "download or save the model again, and check its {}"


@contextmanager
def explained(what: str, name: str | Path) -> Iterator[None]:
    """Turn any failure of a library inside this context into a message with the library's reason and a remedy.

    Args:
        what: what is being loaded, such as ``model``.
        name: its folder or hub id.

    Raises:
        RecipeError: anything failed. Errors that users can cause elsewhere pass unchanged.
    """
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        reason = _reason(error)
        files = "tokenizer files" if what == "tokenizer" else "config.json"
        remedy = next((text for part, text in _REMEDIES if part in reason.lower()), _OTHERWISE.format(files))
        shown = reason if len(reason) <= _LONGEST else reason[: _LONGEST - 1] + "…"
        raise RecipeError(f"the {what} in {name} cannot be loaded: {shown}; {remedy}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    kind = type(error).__name__
    return text if len(text) > 20 else f"{kind}: {text}" if text else kind


def load_pretrained_tokenizer(name: str | Path, **settings: Any) -> Any:
    """Load a tokenizer, and try it on a few words: some damaged settings show only then.

    Args:
        name: a folder or hub id.
        **settings: for ``from_pretrained``.

    Raises:
        RecipeError: it cannot be loaded or used.
    """
    from transformers import AutoTokenizer

    with explained("tokenizer", name):
        tokenizer = AutoTokenizer.from_pretrained(name, **settings)
        tokenizer.decode(tokenizer("A few words.")["input_ids"])
    return tokenizer


def load_pretrained(name: str | Path, **settings: Any) -> Any:
    """Load a causal language model whose weights are all in its files.

    Unused tensors in the files are logged as a note.

    Args:
        name: a folder or hub id.
        **settings: for ``from_pretrained``: dtype, revision, attention, quantization.

    Returns:
        The model, in eval mode.

    Raises:
        RecipeError: the model cannot be loaded, or a weight is missing, has another shape, or lies in layers beyond the model's.
        UserError: it is not certain which files are its weights.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    check_pretrained(name, settings)
    with explained("model", name):
        model, found = AutoModelForCausalLM.from_pretrained(
            str(name),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with names and shapes
            **settings,
        )
    check_loaded(name, model, found)
    return model


def check_pretrained(name: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Check a model folder before its weights are read: config, files, headers, and a size that fits the files.

    Does nothing for a hub id or GGUF file.

    Raises:
        RecipeError: the config is no config of a model, or describes another model than the files contain.
        UserError: as ``weight_files``.
    """
    settings = settings or {}
    folder = Path(name)
    if not folder.is_dir() or "gguf_file" in settings:
        return
    stored = stored_tensors(folder)
    check_counts(folder, len(stored))
    _refuse_integers(folder, stored)
    _check_size(name, read_model_config(name, settings), stored)


def _refuse_integers(folder: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse integers as weights if no quantization config tells what they stand for: they would be read as they are."""
    if any("quantization_config" in section for section in config_sections(model_config(folder))):
        return
    integers = (name for name, one in stored.items() if name.endswith(".weight") and one.dtype not in _FLOATS)
    packed = next(integers, None)
    if packed is not None:
        raise RecipeError(
            f"the model in {folder} cannot be loaded: {packed} is stored as {stored[packed].dtype}, and config.json has no "
            "quantization_config; give the config.json that belongs to these weights"
        )


def check_counts(folder: Path, tensors: int | None = None) -> None:
    """Refuse a config.json whose number of layers or experts would take forever to build.

    Args:
        folder: the model's folder.
        tensors: the number of tensors in its files, which is above the number of layers; None if not known.

    Raises:
        RecipeError: a number is far above that of any model.
        UserError: config.json is not a JSON mapping.
    """
    for section in config_sections(model_config(folder)):
        for key, value in section.items():
            if _COUNT.fullmatch(key) and isinstance(value, int | float) and value > _MOST_LAYERS:
                raise RecipeError(
                    f"the model in {folder} cannot be loaded: {key} is {value:.3g} in config.json, and at most {_MOST_LAYERS} is "
                    "supported; correct it"
                )
            if tensors is not None and key in _LAYERS and isinstance(value, int) and value > tensors:
                raise RecipeError(
                    f"the model in {folder} cannot be loaded: config.json has {value} layers ({key}), and the files hold "
                    f"{tensors} tensors in all; give the config.json that belongs to these weights"
                )


def read_model_config(name: str | Path, settings: Mapping[str, Any] | None = None) -> Any:
    """The config of a model, as Transformers reads it.

    Raises:
        RecipeError: it cannot be read, with the library's reason.
    """
    from transformers import AutoConfig

    kept = {key: value for key, value in (settings or {}).items() if key in ("revision", "trust_remote_code")}
    with explained("model", name):
        return AutoConfig.from_pretrained(str(name), **kept)


def _check_size(name: str | Path, config: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a config that describes a model much larger than its files, before memory is reserved for the difference."""
    shell = model_shell(config)
    if shell is None:
        return
    described = sum(value.numel() for value in (*shell.parameters(), *shell.buffers()))
    held = sum(torch.Size(tensor.shape).numel() for tensor in stored.values())
    # packed quantised weights hold up to 16 values in one
    most = (64 if getattr(config, "quantization_config", None) else 4) * held + (1 << 27)
    if described > most:
        raise RecipeError(
            f"the model in {name} cannot be loaded: config.json describes {described:.3g} weights, and the files hold "
            f"{held:.3g}; give the config.json that belongs to these weights"
        )


def model_shell(config: Any) -> Any:
    """The model that a config describes, without weights (on the meta device); None if only its own code could tell."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception:  # custom code, optional packages, sizes that overflow: from_pretrained says it better
        return None


def check_loaded(name: str | Path, model: Any, found: Mapping[str, Any]) -> None:
    """Check the loading info of ``from_pretrained``.

    Raises:
        RecipeError: weights are missing, have another shape, or belong to layers that the config omits; or an adapter was
            attached.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise RecipeError(
            f"the model in {name} comes with an adapter, which Transformers attached to it; give a model without one, and the "
            "adapter as model.adapter"
        )
    explicit = getattr(model.config, "transformers_weights", None)
    if explicit is not None:
        raise RecipeError(
            f"the config of {name} names other weights (transformers_weights: {explicit!r}); remove the key"
        )
    mismatched = sorted(found["mismatched_keys"])
    if mismatched:
        shown = [
            f"{key} is {tuple(held)} in the files and {tuple(wanted)} in the model" for key, held, wanted in mismatched
        ]
        raise RecipeError(
            f"the model in {name} cannot be loaded: {_some(shown)}. Its config.json belongs to other weights, or a file was "
            "replaced; download or save the model again"
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise RecipeError(
            f"the model in {name} cannot be loaded: its files lack {_some(missing)}, which would be random numbers. "
            f"{_why_missing(missing, found['unexpected_keys'])}; download or save the model again"
        )
    unexpected = sorted(found["unexpected_keys"])
    beyond = [key for key in unexpected if _beyond(key, model)]
    if beyond:
        raise RecipeError(
            f"the model in {name} cannot be loaded: its files hold {_some(beyond)}, layers that config.json leaves out; correct "
            "the number of layers in config.json"
        )
    if unexpected:
        _log.warning(
            "note: the model in %s does not use %s in its files; check its config.json if these are not an extra head or encoder",
            name,
            _some(unexpected),
        )


def _why_missing(missing: list[str], unexpected: Iterable[str]) -> str:
    """The likely cause of missing tensors."""
    if any(key.rpartition(".")[0].endswith(("lm_head", "embed_out")) for key in missing) and len(missing) == 1:
        return "Check tie_word_embeddings in config.json, or whether it was saved without its head"
    if unexpected:
        return f"They hold {_some(sorted(unexpected))} instead: config.json names another architecture, or names were changed"
    return "A shard is missing, or config.json describes a larger model"


def _beyond(key: str, model: Any) -> bool:
    """Whether an unused tensor is in a block past the end of one of the model's own lists of blocks.

    Layers for predicting several tokens at once are stored there by some models, and are not part of the language model.
    """
    for match in re.finditer(r"\.(\d+)\.", key):
        try:
            blocks = model.get_submodule(key[: match.start()])
        except AttributeError:
            return False
        if isinstance(blocks, torch.nn.ModuleList) and int(match[1]) >= len(blocks):
            config = model.config.get_text_config()
            extra = getattr(config, "num_nextn_predict_layers", None) or getattr(config, "num_mtp_layers", None) or 0
            return int(match[1]) >= len(blocks) + extra
    return False


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
