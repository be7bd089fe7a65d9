"""Cache of computed values, with which an interrupted evaluation resumes.

A key is a digest of all inputs: the weights in memory, their adapters, the tokenizer with its template, the token ids and
the settings. File and model names are not part of it. The cache stores numbers per token or per example. It stores
generated texts only if the evaluation keeps text, and never token ids of the data.

Each file names its key and a SHA-256 of its arrays. A file that does not fit them is computed again, and a cache that cannot
be written only costs time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_forget.data.encode import Encoded
from llm_forget.model.batching import sum_over_processes
from llm_forget.model.head import below_wrapper
from llm_forget.utils.digests import json_digest, text_digest, weights_digest
from llm_forget.utils.files import new_file, tidy_files

Arrays = dict[str, npt.NDArray[Any]]

# Version of the format and of the code that computes the values. Increase it if either changes; older files are then ignored.
CACHE_SCHEMA = 2
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version")


class Cache:
    """A folder of arrays, one file per key.

    Args:
        folder: the folder, created on the first save. With several processes, all of them must have access to it.
        context: the inputs that all values depend on; see ``model_context``.
        say: called once with a note if the folder cannot be written.

    Attributes:
        problem: why a value could not be stored; None if all were.
    """

    def __init__(self, folder: Path, context: Mapping[str, Any], say: Callable[[str], None] = lambda _: None) -> None:
        self.folder, self._say = folder, say
        self.context = json_digest({"schema": CACHE_SCHEMA, **context})
        self.problem: str | None = None
        tidy_files(folder)

    def path(self, kind: str, parts: Any) -> Path:
        """The file of a cached value.

        Args:
            kind: the kind of value.
            parts: its inputs besides the context, in a form that JSON can hold.
        """
        key = json_digest([self.context, kind, parts])
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def load(self, path: Path) -> Arrays | None:
        """Read the arrays of a file; None if it does not exist, or is not exactly what ``save`` wrote under this name."""
        try:
            if not path.is_file():  # opening a pipe would wait for ever
                return None
            with safe_open(path, framework="np") as opened:
                stated = opened.metadata() or {}
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except Exception:  # whatever is wrong with the file, its value can be computed again
            return None
        return arrays if stated == _metadata(path, arrays) else None

    def save(self, path: Path, arrays: Arrays) -> None:
        """Write arrays atomically. If that fails, ``problem`` and a note say so, and the evaluation goes on."""
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            with new_file(path, within=self.folder, sync=False) as partial:
                save_file(arrays, partial, metadata=_metadata(path, arrays))
        except (OSError, SafetensorError) as error:
            if self.problem is None:
                self.problem = (
                    f"the cache in {self.folder} cannot be written ({error}); the results do not depend on it"
                )
                self._say(self.problem)


def _metadata(path: Path, arrays: Arrays) -> dict[str, str]:
    """What a file must say about itself: its key, and the digest of names, types, shapes and bytes of its arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name!r} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return {"key": path.stem, "sha256": digest.hexdigest()}


def remember(cache: Cache | None, accelerator: Any, kind: str, parts: Any, compute: Callable[[], Arrays]) -> Arrays:
    """Read a value from the cache, or compute and store it.

    Args:
        cache: the cache; None always computes the value.
        accelerator: an ``accelerate.Accelerator`` or None. The value is read only if all processes find it, because the
            computation may need all of them.
        kind: the kind of value.
        parts: its inputs besides the cache's context, in a form that JSON can hold.
        compute: returns the arrays, the same on every process.
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
    """Digest of encoded rows: their token ids and prompt lengths."""
    return json_digest([[list(row.input_ids), row.prompt_length] for row in rows])


def all_agree(flags: list[bool], accelerator: Any) -> list[bool]:
    """For each flag, whether it is set on every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return flags
    counts = sum_over_processes(np.array(flags, dtype=np.int64), accelerator)
    return [bool(count == accelerator.num_processes) for count in counts]


def model_context(model: Any, tokenizer: Any) -> dict[str, Any] | None:
    """Describe a model in memory and the way it runs, as JSON; None if this process holds only a part of the model, or none.

    Args:
        model: a causal language model, wrapped or not, with or without adapters.
        tokenizer: its tokenizer.
    """
    import transformers

    if not isinstance(model, torch.nn.Module):
        return None  # behind a server, which may serve another model under the same name tomorrow
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
    """Digest of ``model_context``; None if the context is None."""
    context = model_context(model, tokenizer)
    return None if context is None else json_digest(context)


def _adapters(model: torch.nn.Module) -> list[Any]:
    """The state of adapters that is not in their weights: scaling, active adapters, and merged or not."""
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
    """Digest of a tokenizer's behaviour: its vocabulary, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pieces = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = repr(sorted((key, repr(value)) for key, value in tokenizer.special_tokens_map.items()))
    return text_digest(
        "\n".join([type(tokenizer).__name__, pieces, special, repr(getattr(tokenizer, "chat_template", None))])
    )
