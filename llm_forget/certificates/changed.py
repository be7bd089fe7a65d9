"""Whether a run changed its model at all: a statement about a run that did not cannot be made."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from llm_forget.adapters.arithmetic import delta
from llm_forget.adapters.base_layers import base_layers
from llm_forget.adapters.lora import Adapter, load_adapter
from llm_forget.adapters.merge import checked_digest, merge, weight_names
from llm_forget.errors import UserError
from llm_forget.evaluation.results import StoredResults
from llm_forget.utils.digests import stored_tensors, weights_digest

_NO_STATEMENT = "no statement can be made about a run that did not change the model"


def check_adapter(adapter_folder: Path, base: Path) -> dict[str, Any]:
    """Check that an adapter is for a base and changes it, after rounding to the base's dtype too.

    Args:
        adapter_folder: the adapter.
        base: the folder of its base.

    Returns:
        How many of its layers change the base's weights, and of how many.

    Raises:
        UserError: it changes nothing, is not finite, or is for another base.
    """
    adapter = load_adapter(adapter_folder)
    checked_digest(adapter, base)
    for name, one in adapter.modules.items():
        if not bool(torch.isfinite(one.A).all() and torch.isfinite(one.B).all()):
            raise UserError(f"{adapter_folder}: {name} is not finite; {_NO_STATEMENT} in a way that can be served")
    layers = base_layers(base)
    names = weight_names(adapter, layers)
    tensors = stored_tensors(base)
    moved = 0
    for module, name in names.items():
        with safe_open(tensors[name].file, framework="pt") as shard:
            before = shard.get_tensor(name)
        moved += _moves(adapter, module, before, transposed=layers.is_transposed(module, adapter.config))
    if not moved:
        raise UserError(
            f"{adapter_folder} changes nothing: its factors are zero, or too small for the dtype of {base}; {_NO_STATEMENT}"
        )
    return {"layers": len(names), "changed_layers": moved}


def _moves(adapter: Adapter, module: str, before: torch.Tensor, *, transposed: bool) -> bool:
    change = delta(adapter, module)
    after = before.float() + (change.T if transposed else change)
    return not torch.equal(before, after.to(before.dtype))


def check_model(model: Path, base: Path) -> None:
    """Check that a fully trained model differs from its base.

    Raises:
        UserError: the weights are the same.
    """
    if weights_digest(model) == weights_digest(base):
        raise UserError(f"{model} has the weights of {base}; {_NO_STATEMENT}")


def check_merged(merged: Path, adapter_folder: Path, base: Path) -> None:
    """Check that a merged model is the base with the adapter and nothing else, by merging again.

    Raises:
        UserError: it is not.
    """
    dtype = next(iter({one.dtype for one in stored_tensors(merged).values()} & {"F32", "BF16", "F16"}), None)
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", None: None}
    with tempfile.TemporaryDirectory(dir=merged.resolve().parent, prefix=".llm-forget-") as scratch:
        again = merge(base, adapter_folder, Path(scratch) / "merged", names[dtype])
        same = weights_digest(again) == weights_digest(merged)
    if not same:
        raise UserError(
            f"{merged} is not {base} with {adapter_folder} merged into it; merge them with `llm-forget merge`"
        )


def check_measured(results: Mapping[str, StoredResults], targets: Mapping[str, StoredResults]) -> None:
    """Check that the measured model is not the one before unlearning, by its weights and by the scores of the forget rows.

    Args:
        results: suite → results of the run.
        targets: suite → results of the model before unlearning.

    Raises:
        UserError: it is.
    """
    for suite, own in results.items():
        other = targets.get(suite)
        if other is None:
            continue
        weights = (own.raw.get("model") or {}).get("weights")
        if weights is not None and weights == (other.raw.get("model") or {}).get("weights"):
            raise UserError(f"{suite}: the weights that were measured are those before unlearning; {_NO_STATEMENT}")
        if _forget_scores(own) == _forget_scores(other) != []:
            raise UserError(f"{suite}: every score of the forget rows is as before unlearning; {_NO_STATEMENT}")


def _forget_scores(stored: StoredResults) -> list[Any]:
    columns = stored.columns()
    if not columns:
        return []
    labels = sorted(name for name in columns if name not in ("set", "id") and not name.startswith("kl_"))
    rows = [index for index, name in enumerate(columns["set"]) if name in stored.forget_sets]
    return sorted((columns["id"][row], str([columns[label][row] for label in labels])) for row in rows)
