"""What an evaluation has computed, kept by what it was computed from: an interrupted one goes on where it stopped.

A key is a digest of the weights in memory, the adapters on them, the tokenizer with its template, the token ids and the
settings; never a name of a file or a model. What is kept are numbers a token or an example: neither texts nor token ids
(which are texts), unless the evaluation keeps text anyway.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from llm_forget.data.encode import Encoded
from llm_forget.model.batching import sum_over_processes
from llm_forget.model.head import below_wrapper
from llm_forget.utils.digests import json_digest, text_digest, weights_digest

Arrays = dict[str, npt.NDArray[Any]]

# Of what is kept and of the code that computes it: raise it when either changes, and nothing older is read any more.
CACHE_SCHEMA = 1
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version")


class Cache:
    """A folder of arrays, one file a key.

    Args:
        folder: where; made when something is kept. Several processes need one that all of them see.
        context: what everything in this evaluation depends on: ``model_context``.
    """

    def __init__(self, folder: Path, context: Mapping[str, Any]) -> None:
        self.folder = folder
        self.context = json_digest({"schema": CACHE_SCHEMA, **context})

    def path(self, kind: str, parts: Any) -> Path:
        """The file of something.

        Args:
            kind: what it is.
            parts: what it is computed from beside the context, as JSON can say it.
        """
        key = json_digest([self.context, kind, parts])
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def load(self, path: Path) -> Arrays | None:
        """The arrays of a file, None where there is none, or none that can be read."""
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError):
            return None

    def save(self, path: Path, arrays: Arrays) -> None:
        """Keep arrays, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}"
        try:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def remember(cache: Cache | None, accelerator: Any, kind: str, parts: Any, compute: Callable[[], Arrays]) -> Arrays:
    """Read something from the cache, or compute it and keep it.

    Args:
        cache: None computes it every time.
        accelerator: an ``accelerate.Accelerator`` or None; its processes agree on whether all of them have it, since the
            computation may need all of them.
        kind: what it is.
        parts: what it is computed from beside the cache's context, as JSON can say it.
        compute: gives arrays, the same on every process.
    """
    if cache is None:
        return compute()
    path = cache.path(kind, parts)
    kept = cache.load(path)
    if all_agree([kept is not None], accelerator)[0] and kept is not None:
        return kept
    arrays = compute()
    if accelerator is None or accelerator.is_main_process:
        cache.save(path, arrays)
    return arrays


def rows_digest(rows: Sequence[Encoded]) -> str:
    """What encoded answers are: their token ids, and where each answer begins."""
    return json_digest([[list(row.input_ids), row.prompt_length] for row in rows])


def all_agree(flags: list[bool], accelerator: Any) -> list[bool]:
    """Which flags are set on every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return flags
    counts = sum_over_processes(np.array(flags, dtype=np.int64), accelerator)
    return [bool(count == accelerator.num_processes) for count in counts]


def model_context(model: Any, tokenizer: Any) -> dict[str, Any] | None:
    """What a model in memory is, and how it is run, as JSON; None for a model of which a process holds only a part.

    Args:
        model: a causal language model, wrapped or not, with adapters or without.
        tokenizer: its tokenizer.
    """
    import transformers

    inner = below_wrapper(model)
    weights = {**inner.state_dict()}
    tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    if not tensors or any(hasattr(tensor, "full_tensor") or tensor.is_meta for tensor in tensors.values()):
        return None
    first = next(inner.parameters())
    config = getattr(inner, "config", None)
    return {
        "weights": weights_digest(tensors),
        "adapters": _adapters(inner),
        "config": _config_digest(config),
        "attention": getattr(config, "_attn_implementation", None),
        "tokenizer": tokenizer_digest(tokenizer),
        "dtype": str(first.dtype),
        "device": first.device.type,
        "versions": [torch.__version__, transformers.__version__],
    }


def context_digest(model: Any, tokenizer: Any) -> str | None:
    """Digest of ``model_context``, None where that is."""
    context = model_context(model, tokenizer)
    return None if context is None else json_digest(context)


def _adapters(model: torch.nn.Module) -> list[Any]:
    """What scales and switches adapters, which their weights do not say: rank stabilisation, strengths, merged or not."""
    return [
        [name, {key: float(value) for key, value in sorted(module.scaling.items())}, *_switches(module)]
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    ]


def _switches(module: Any) -> list[Any]:
    active = getattr(module, "active_adapters", [])
    merged = getattr(module, "merged_adapters", [])
    return [list(map(str, active)), list(map(str, merged)), bool(getattr(module, "disable_adapters", False))]


def _config_digest(config: Any) -> str:
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return text_digest(
        repr(sorted((key, repr(value)) for key, value in values.items() if key not in _NOT_OF_THE_MODEL))
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of everything a tokenizer does: its pieces, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pieces = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = repr(sorted((key, repr(value)) for key, value in tokenizer.special_tokens_map.items()))
    return text_digest(
        "\n".join([type(tokenizer).__name__, pieces, special, repr(getattr(tokenizer, "chat_template", None))])
    )
