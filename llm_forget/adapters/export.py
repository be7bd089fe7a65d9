"""What leaves the house: an adapter that servers load as it was meant, or the base with the change written into it.

The export contract is what vLLM, SGLang, llama.cpp and PEFT read alike: plain LoRA, one rank for all modules, alpha
equal to the rank (so that alpha/r is 1 wherever it is applied, and ignoring it does no harm), sign and strength in B,
linear layers named one by one, and nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llm_forget.adapters.arithmetic import Truncated, delta, needed_rank, relative_distance, truncate
from llm_forget.adapters.card import adapter_card, merged_card, vllm_rank
from llm_forget.adapters.lora import Adapter, BaseRecord, Factors, load_adapter, new_folder, save_adapter, save_weights
from llm_forget.adapters.lora_config import explicit_targets, plain_config
from llm_forget.errors import AdapterError
from llm_forget.utils.digests import StoredTensor, stored_tensors, weight_files, weights_digest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_EMBEDDINGS = ("lm_head", "embed_out", "embed_tokens", "wte")
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")  # weights in any other form


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it is from what was given.

    Attributes:
        folder: where it is.
        rank: the rank of every module.
        residual: ‖ΔW − ΔW'‖ / ‖ΔW‖ by cutting ranks, before rounding; 0 where every rank fitted.
        rounding: the same in all, with the rounding of the type it is stored in.
    """

    folder: Path
    rank: int
    residual: float
    rounding: float


def export_adapter(
    source: str | Path | Adapter,
    target: str | Path,
    *,
    max_rank: int = 16,
    dtype: torch.dtype | str = torch.float32,
    base: BaseRecord | None = None,
    method: str | None = None,
    results: Mapping[str, object] | None = None,
    tolerance: float = 1e-3,
    allow_lossy: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write an adapter that vLLM, SGLang, llama.cpp and PEFT load with the same meaning.

    Ranks that fit are exact (smaller ones padded with zeros); larger ones are cut by SVD, the error stated in the card.

    Args:
        source: an adapter or its folder.
        target: the folder to make.
        max_rank: the largest rank the servers take; 16 is vLLM's default.
        dtype: what A and B are stored in. Everything before is fp32.
        base: name, revision and digest of the base, where the adapter does not record them (or records a local path).
        method: how it was trained, in a line, for the card.
        results: measurements for the card, by name.
        tolerance: the largest residual of the cut that is let through.
        allow_lossy: let a larger one through too.
        overwrite: replace an adapter that is there.

    Raises:
        AdapterError: not plain LoRA, no name or digest of the base, a head or embedding among the modules, a cut that
            loses more than ``tolerance``, numbers too large for the type, or a folder that is taken.
    """
    adapter = source if isinstance(source, Adapter) else load_adapter(source)
    stored = as_dtype(dtype)
    record = _published_base(adapter.base, base or BaseRecord())
    _refuse_embeddings(adapter)
    cut = truncate(adapter, max_rank)
    if cut.residual > tolerance and not allow_lossy:
        rank = needed_rank(adapter, tolerance)
        served = vllm_rank(rank)
        setting = f"vLLM then needs --max-lora-rank {served}" if served else "more than vLLM takes"
        raise AdapterError(
            f"at rank {max_rank} this adapter (rank {adapter.rank}) loses {cut.residual:.2%} of its change, more than "
            f"{tolerance:.2%}. Export with max_rank={rank} ({setting}), merge it into the base, or pass "
            "allow_lossy=True."
        )
    return _write(cut, adapter, record, stored, target, method, results, overwrite)


def save_without_base(
    adapter: Adapter,
    target: str | Path,
    *,
    max_rank: int,
    method: str | None = None,
    results: Mapping[str, object] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write an adapter in the exported form though its base is not on record: for arithmetic on files alone.

    Args:
        adapter: what to write.
        target: the folder to make.
        max_rank: ranks above it are cut by SVD, whatever that loses; the residual is returned and in the card.
        method: how it came about, in a line, for the card.
        results: measurements for the card, by name.
        overwrite: replace an adapter that is there.

    Raises:
        AdapterError: a rank below 1, or a folder that is taken.
    """
    cut = truncate(adapter, max_rank)
    name = public_name(adapter.base.name) if adapter.base.name else None
    record = replace(adapter.base, name=name)
    return _write(cut, adapter, record, torch.float32, target, method, results, overwrite)


def _write(
    cut: Truncated,
    original: Adapter,
    record: BaseRecord,
    dtype: torch.dtype,
    target: str | Path,
    method: str | None,
    results: Mapping[str, object] | None,
    overwrite: bool,
) -> Exported:
    plain = _one_rank(cut.adapter, original, record, dtype)
    rounding = relative_distance(plain, replace(original, base=record))
    card = adapter_card(record, plain.rank, cut.residual, rounding, dtype, method, results or {})
    folder = save_adapter(plain, target, card=card, overwrite=overwrite)
    return Exported(folder, plain.rank, cut.residual, rounding)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch type from itself or its name.

    Raises:
        AdapterError: neither float32, bfloat16 nor float16.
    """
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if known is None or known not in DTYPES.values():
        raise AdapterError(f"dtype {dtype} given; {', '.join(DTYPES)} are allowed.")
    return known


def _published_base(recorded: BaseRecord, given: BaseRecord) -> BaseRecord:
    """The record that goes out: what the caller says, else what the adapter says, without paths of this machine."""
    if recorded.digest and given.digest and recorded.digest != given.digest:
        raise AdapterError(
            f"the adapter was made for weights with digest {recorded.digest[:12]}…, and the base given has "
            f"{given.digest[:12]}…: another model. Give the base it was trained on."
        )
    name, digest = given.name or recorded.name, given.digest or recorded.digest
    if not name or not digest:
        missing = " and no ".join(word for word, value in (("name", name), ("digest", digest)) if not value)
        raise AdapterError(
            f"the adapter records no {missing} of its base, and who loads it must know which model it belongs to. Pass "
            "base=BaseRecord(name, revision, weights_digest(base folder))."
        )
    return BaseRecord(public_name(name), given.revision or recorded.revision, digest)


def public_name(name: str) -> str:
    """A hub id as it is; of a folder on this machine only its own name, since the way to it means nothing elsewhere."""
    is_local = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or Path(name).exists()
    return Path(name).resolve().name if is_local else name


def _refuse_embeddings(adapter: Adapter) -> None:
    found = [module for module in adapter.modules if module.rpartition(".")[2] in _EMBEDDINGS]
    if found:
        raise AdapterError(
            f"the adapter changes {', '.join(found)}: servers disagree about a LoRA on embeddings or head, and where "
            "the two are tied it changes both. Train with the linear layers of the blocks as target_modules only."
        )


def _one_rank(cut: Adapter, original: Adapter, record: BaseRecord, dtype: torch.dtype) -> Adapter:
    """The same change with one rank everywhere, stored in ``dtype``."""
    rank = cut.rank
    modules = {module: _padded(module, factors, rank, dtype) for module, factors in cut.modules.items()}
    targets = [
        target
        for target in explicit_targets(original.config, original.modules)
        if any(module == target or module.endswith(f".{target}") for module in modules)
    ]
    return Adapter(plain_config(dict.fromkeys(modules, rank), targets, original.config), modules, record)


def _padded(module: str, factors: Factors, rank: int, dtype: torch.dtype) -> Factors:
    """A (rank, in) and B (out, rank) with zeros where the factors were smaller; scaling is 1 already."""
    out, width = factors.shape
    a, b = torch.zeros(rank, width), torch.zeros(out, rank)
    a[: factors.rank], b[:, : factors.rank] = factors.A, factors.B
    return Factors(_cast(a, dtype, f"A of {module}"), _cast(b, dtype, f"B of {module}"), 1.0)


def _cast(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    result = tensor.to(dtype)
    if not torch.isfinite(result).all():
        raise AdapterError(
            f"{what} reaches {float(tensor.abs().max()):.3g}, too large for {dtype}; take bfloat16 or float32."
        )
    return result


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
    """Write the base with the adapter's change in its weights: W + ΔW in fp32, rounded once, shard by shard.

    No model is built: untouched tensors keep their bits (where the type stays), and memory holds one shard.

    Args:
        base_folder: a model folder with safetensors.
        adapter: an adapter or its folder.
        target: the folder to make; tokenizer and config files are copied along.
        dtype: the type of all floating-point weights, or None to keep each one's own.
        method: how the adapter was trained, in a line, for the card.
        results: measurements for the card, by name.
        overwrite: replace a model that is there.

    Raises:
        AdapterError: the base is quantised, is another model than the adapter's, or lacks a layer the adapter changes.
    """
    base_folder, target = Path(base_folder), Path(target)
    adapter = adapter if isinstance(adapter, Adapter) else load_adapter(adapter)
    if target.resolve() == base_folder.resolve():
        raise AdapterError(f"{target} is the base itself; choose another folder, so that the base stays what it is.")
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
    """The digest of a base's weights, which must be the one that the adapter records, if it records any.

    Raises:
        AdapterError: it is another one.
    """
    digest = weights_digest(base_folder)
    if adapter.base.digest and adapter.base.digest != digest:
        raise AdapterError(
            f"{base_folder} has weights with digest {digest[:12]}…, and the adapter was made for "
            f"{adapter.base.digest[:12]}…: another model, or another revision of it. Give the base it was trained on."
        )
    return digest


def weight_names(adapter: Adapter, stored: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Which stored weight each module of an adapter changes.

    Raises:
        AdapterError: a layer is missing, has another shape, or is stored in a quantised type.
    """
    names = {}
    for module, factors in adapter.modules.items():
        # A model saved without its head names its weights without the first component: h.0… for transformer.h.0…
        candidates = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        name = next((candidate for candidate in candidates if candidate in stored), None)
        if name is None:
            raise AdapterError(
                f"the base has no weight {module}.weight for the adapter to change. Give the base it was trained on; "
                "if it is that one, its files name layers otherwise than the model does: merge with PEFT's "
                "merge_and_unload in fp32."
            )
        expected = factors.shape[::-1] if adapter.config.get("fan_in_fan_out") else factors.shape
        if stored[name].dtype not in ("F64", "F32", "BF16", "F16"):
            raise AdapterError(
                f"the base stores {name} as {stored[name].dtype}, a quantised type; merging there loses the change. "
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
        raise AdapterError(f"{folder} has no config.json; give the folder of a whole model.")
    try:
        config: dict[str, Any] = dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{path} is no JSON mapping ({error}); fetch the model again.") from error
    if config.get("quantization_config"):
        kind = config["quantization_config"].get("quant_method", "unknown")
        raise AdapterError(
            f"{folder} is quantised ({kind}): merging into packed weights is wrong by far more than the adapter "
            "changes. Merge into the base in fp32, bf16 or fp16, and quantise the result."
        )
    return config


def _refuse_tied_head(adapter: Adapter, config: Mapping[str, Any]) -> None:
    found = [module for module in adapter.modules if module.rpartition(".")[2] in _EMBEDDINGS]
    if found and config.get("tie_word_embeddings"):
        raise AdapterError(
            f"the adapter changes {', '.join(found)}, and this base ties head and embeddings: writing into one changes "
            "the other. Train with the linear layers of the blocks as target_modules only."
        )


def _merged_tensors(
    file: Path, adapter: Adapter, changed: Mapping[str, str], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one shard, those the adapter changes among them changed."""
    with safe_open(file, framework="pt") as shard:
        for name in shard.keys():  # noqa: SIM118 (no mapping: it has keys() alone)
            tensor: Tensor = shard.get_tensor(name)
            kept = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            if name in changed:
                change = delta(adapter, changed[name])
                tensor = tensor.float() + (change.T if adapter.config.get("fan_in_fan_out") else change)
            yield name, _cast(tensor, kept, name) if name in changed or kept != tensor.dtype else tensor


def _copy_companions(source: Path, target: Path) -> None:
    """Config, tokenizer, template and licence: every file that is no weight and no card of the base."""
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
    """The config with its type under the key it uses: ``dtype`` since Transformers 5, ``torch_dtype`` before."""
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return {**config, key: str(dtype).removeprefix("torch.")}
