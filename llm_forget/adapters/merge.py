"""Merge an adapter into the weights of its base, file by file, without building a model."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llm_forget.adapters.arithmetic import delta
from llm_forget.adapters.base_layers import FLOATS, BaseLayers, base_layers
from llm_forget.adapters.card import merged_card
from llm_forget.adapters.export import EMBEDDINGS, as_dtype, cast, public_name
from llm_forget.adapters.lora import Adapter, BaseRecord, load_adapter, new_folder, save_weights
from llm_forget.errors import AdapterError, UserError
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.weight_files import INDEX_NAME, OTHER_FORMATS, json_mapping, model_config, weight_files

log = logging.getLogger("llm_forget")

_TEXTS = (".jinja", ".json", ".txt", ".model", ".py", ".md")  # what is copied from subfolders
_OF_THE_BASE = ("README.md", "trainer_state.json", "imported_from.json")  # not true of the merged model
_OF_A_MODEL = ("config.json", "adapter_config.json", "trainer_state.json")


def merge(
    base_folder: str | Path,
    adapter: str | Path | Adapter,
    target: str | Path,
    dtype: torch.dtype | str | None = None,
    *,
    method: str | None = None,
    results: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the base with W + ΔW as its weights, added in fp32 and rounded once.

    Works shard by shard. All other tensors keep their bits, unless ``dtype`` changes them.

    Args:
        base_folder: a model folder with safetensors.
        adapter: an adapter or its folder.
        target: the folder to create; gets a copy of the tokenizer and config files too.
        dtype: dtype of all floating-point weights; None to keep those of the base.
        method: one line on how the adapter was trained, for the card.
        results: measurements for the card, by name.
        overwrite: replace an existing model.

    Raises:
        AdapterError: the base is quantised, is not the adapter's base, or lacks a layer that the adapter changes.
    """
    base_folder, target = Path(base_folder), Path(target)
    adapter = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
    if target.resolve() == base_folder.resolve():
        raise AdapterError(f"{target} is the base itself; choose another folder, so that the base is kept.")
    config = _model_config(base_folder)
    layers = base_layers(base_folder)
    _refuse_tied_head(adapter, config)
    changed = {name: module for module, name in weight_names(adapter, layers).items()}
    digest = checked_digest(adapter, base_folder)
    wanted = None if dtype is None else as_dtype(dtype)
    with new_folder(target, overwrite=overwrite) as new:
        _copy_companions(base_folder, new)
        shards: dict[str, str] = {}
        moved = total = 0
        for file in weight_files(base_folder):
            tensors = {}
            for name, before, after in _merged_tensors(file, adapter, layers, changed, wanted):
                tensors[name] = after
                moved += name in changed and not torch.equal(before.to(after.dtype), after)
            total += sum(tensor.nbytes for tensor in tensors.values())
            shards |= dict.fromkeys(tensors, file.name)
            save_weights(tensors, new / file.name, {"format": "pt"})
        _write_index(base_folder, new, shards, total)
        if moved < len(changed):
            _say_unchanged(moved, len(changed))
        if wanted is not None:
            (new / "config.json").write_text(json.dumps(_with_dtype(config, wanted), indent=2) + "\n", "utf-8")
        name = public_name(adapter.base.name) if adapter.base.name else base_folder.resolve().name
        record = BaseRecord(name, adapter.base.revision, digest)
        (new / "README.md").write_text(merged_card(record, method, results or {}), "utf-8")
    return target


def checked_digest(adapter: Adapter, base_folder: Path) -> str:
    """The digest of a base's weights, compared with the one that the adapter records.

    Raises:
        AdapterError: the digests differ.
    """
    digest = weights_digest(base_folder)
    if adapter.base.digest and adapter.base.digest != digest:
        raise AdapterError(
            f"the weights in {base_folder} have the digest {digest[:12]}…, and the adapter was made for "
            f"{adapter.base.digest[:12]}…: another model, or another revision of it. Give the base it was trained on."
        )
    return digest


def weight_names(adapter: Adapter, base: BaseLayers) -> dict[str, str]:
    """The name of the stored weight that each module of an adapter changes.

    Raises:
        AdapterError: a layer is missing, has another shape, or has a quantised dtype.
    """
    misfit = base.misfit(adapter)
    if misfit is not None and misfit.found is None:
        raise AdapterError(
            f"the base has no weight {misfit.module}.weight for the adapter to change in {base.folder}: {misfit.advice}."
        )
    if misfit is not None:
        raise AdapterError(
            f"the base's {misfit.module}.weight is {misfit.found} where the adapter expects {misfit.wanted}: another model. Give "
            "the base it was trained on."
        )
    names = {}
    for module in adapter.modules:
        layer = base.layers[module]
        if layer.stored is None:
            raise AdapterError(
                f"the files of the base hold no weight for {module} alone: it is tied to another, or converted on loading. Merge "
                "with PEFT's merge_and_unload in fp32."
            )
        if layer.dtype not in FLOATS:
            raise AdapterError(
                f"the base stores {layer.stored} as {layer.dtype}, a quantised dtype, where a merge loses the change. "
                "Give the base in fp32, bf16 or fp16."
            )
        names[module] = layer.stored
    return names


def _say_unchanged(moved: int, count: int) -> None:
    """Tell that layers keep their weights although the adapter has factors for them."""
    what = "changes nothing" if not moved else f"leaves {count - moved} of {count} layers unchanged"
    log.warning(
        "note: after rounding to the stored dtype the adapter %s: its factors are zero or too small for it; check the adapter, "
        "or merge with dtype float32",
        what,
    )


def _model_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise AdapterError(f"{folder} has no config.json; give the folder of a complete model.")
    try:
        config = model_config(folder)
    except UserError as error:
        raise AdapterError(str(error)) from error
    quantised = config.get("quantization_config")
    if quantised:
        kind = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
        raise AdapterError(
            f"{folder} is quantised ({kind}), and the error of a merge into quantised weights exceeds the adapter's change. "
            "Merge into the base in fp32, bf16 or fp16, and quantise the result."
        )
    return config


def _refuse_tied_head(adapter: Adapter, config: Mapping[str, Any]) -> None:
    found = [module for module in adapter.modules if module.rpartition(".")[2] in EMBEDDINGS]
    if found and config.get("tie_word_embeddings"):
        raise AdapterError(
            f"the adapter changes {', '.join(found)}, and this base ties head and embeddings, so that both would change. "
            " Train with the linear layers of the blocks as target_modules only."
        )


def _merged_tensors(
    file: Path, adapter: Adapter, layers: BaseLayers, changed: Mapping[str, str], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, stored tensor and merged tensor of each tensor in a shard."""
    with safe_open(file, framework="pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (no mapping: it has keys() alone)
            before: Tensor = shard.get_tensor(name)
            kept = dtype if dtype is not None and before.is_floating_point() else before.dtype
            after = before
            if name in changed:
                change = delta(adapter, changed[name])
                after = before.float() + (change.T if layers.is_transposed(changed[name], adapter.config) else change)
            yield name, before, cast(after, kept, name) if name in changed or kept != before.dtype else after


def _copy_companions(source: Path, target: Path) -> None:
    """Copy config, tokenizer, templates, code and licence: everything except weights, adapters and the base's card.

    From subfolders, text files are copied (named chat templates lie in ``additional_chat_templates``). A subfolder that is a
    model, an adapter or a checkpoint of its own is left out.
    """
    for folder, below, names in os.walk(source):
        inside = Path(folder) != source
        if inside and any(name in _OF_A_MODEL or _is_weights(name) for name in names):
            below.clear()
            continue
        below[:] = [name for name in below if not name.startswith(".")]
        for name in sorted(names):
            kept = Path(name).suffix in _TEXTS if inside else name not in _OF_THE_BASE
            path = Path(folder, name)
            if kept and path.is_file() and not name.startswith((".", "adapter_")) and not _is_weights(name):
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def _is_weights(name: str) -> bool:
    suffix = Path(name).suffix
    return suffix == ".safetensors" or suffix in OTHER_FORMATS or name.endswith(".index.json")


def _write_index(source: Path, target: Path, shards: Mapping[str, str], total: int) -> None:
    """Write the index of several shards from the tensors that they hold; a single file needs none."""
    if len(set(shards.values())) < 2 and "model.safetensors" in shards.values():
        return
    given = json_mapping(source / INDEX_NAME).get("metadata")
    metadata = {**(given if isinstance(given, dict) else {}), "total_size": total}
    content = {"metadata": metadata, "weight_map": dict(sorted(shards.items()))}
    (target / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The config with a new dtype, under the key that it has: ``dtype`` since Transformers 5, ``torch_dtype`` before."""
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, key: str(dtype).removeprefix("torch.")}
