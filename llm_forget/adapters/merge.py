"""Merge an adapter into the weights of its base, file by file, without building a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llm_forget.adapters.arithmetic import delta
from llm_forget.adapters.card import merged_card
from llm_forget.adapters.export import EMBEDDINGS, as_dtype, cast, public_name
from llm_forget.adapters.lora import Adapter, BaseRecord, load_adapter, new_folder, save_weights
from llm_forget.errors import AdapterError
from llm_forget.utils.digests import StoredTensor, stored_tensors, weight_files, weights_digest

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")  # weights in other formats


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
    stored = stored_tensors(base_folder)
    changed = {name: module for module, name in weight_names(adapter, stored).items()}
    _refuse_tied_head(adapter, config)
    digest = checked_digest(adapter, base_folder)
    wanted = None if dtype is None else as_dtype(dtype)
    with new_folder(target, overwrite=overwrite) as new:
        _copy_companions(base_folder, new)
        total = 0
        for file in weight_files(base_folder):
            tensors = dict(_merged_tensors(file, adapter, changed, wanted))
            total += sum(tensor.nbytes for tensor in tensors.values())
            save_weights(tensors, new / file.name, {"format": "pt"})
        _write_index(base_folder, new, total)
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


def weight_names(adapter: Adapter, stored: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The name of the stored weight that each module of an adapter changes.

    Raises:
        AdapterError: a layer is missing, has another shape, or has a quantised dtype.
    """
    names = {}
    for module, factors in adapter.modules.items():
        # A model saved without its head drops the first component of the names: h.0… for transformer.h.0…
        candidates = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        name = next((candidate for candidate in candidates if candidate in stored), None)
        if name is None:
            raise AdapterError(
                f"the base has no weight {module}.weight for the adapter to change. Give the base it was trained on. If "
                "this is it, its files use other layer names than the model: merge with PEFT's merge_and_unload in fp32."
            )
        expected = factors.shape[::-1] if adapter.config.get("fan_in_fan_out") else factors.shape
        if stored[name].dtype not in ("F64", "F32", "BF16", "F16"):
            raise AdapterError(
                f"the base stores {name} as {stored[name].dtype}, a quantised dtype, where a merge loses the change. "
                "Give the base in fp32, bf16 or fp16."
            )
        if stored[name].shape != tuple(expected):
            raise AdapterError(
                f"the base's {name} is {stored[name].shape} where the adapter expects {tuple(expected)}: another "
                "model. Give the base it was trained on."
            )
        names[module] = name
    return names


def _model_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise AdapterError(f"{folder} has no config.json; give the folder of a complete model.")
    try:
        config: dict[str, Any] = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path} is not a JSON mapping ({error}); download the model again.") from error
    if config.get("quantization_config"):
        kind = config["quantization_config"].get("quant_method", "unknown")
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
    file: Path, adapter: Adapter, changed: Mapping[str, str], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one shard, with the adapter's change added."""
    with safe_open(file, framework="pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (no mapping: it has keys() alone)
            tensor: Tensor = shard.get_tensor(name)
            kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if name in changed:
                change = delta(adapter, changed[name])
                tensor = tensor.float() + (change.T if adapter.config.get("fan_in_fan_out") else change)
            yield name, cast(tensor, kept, name) if name in changed or kept != tensor.dtype else tensor


def _copy_companions(source: Path, target: Path) -> None:
    """Copy config, tokenizer, template and licence: every file except weights and the base's card."""
    for path in sorted(source.iterdir()):
        skipped = path.suffix in _NOT_COPIED or path.name.startswith(".") or path.name.endswith(".index.json")
        if path.is_file() and not skipped and path.name != "README.md":
            shutil.copyfile(path, target / path.name)


def _write_index(source: Path, target: Path, total: int) -> None:
    index = source / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text("utf-8"))
        content["metadata"] = {**content.get("metadata", {}), "total_size": total}
        (target / index.name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _with_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The config with a new dtype, under the key that it has: ``dtype`` since Transformers 5, ``torch_dtype`` before."""
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, key: str(dtype).removeprefix("torch.")}
