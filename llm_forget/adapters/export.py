"""Export an adapter in the form that vLLM, SGLang, llama.cpp and PEFT all apply alike.

That form is plain LoRA with one rank for all modules, alpha equal to the rank (so alpha/r is 1, and a server that ignores it does
no harm), sign and strength in B, linear layers named one by one, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llm_forget.adapters.arithmetic import Truncated, needed_rank, relative_distance, truncate
from llm_forget.adapters.base_layers import named_as_in, refuse_wrapped
from llm_forget.adapters.card import adapter_card, vllm_rank
from llm_forget.adapters.lora import Adapter, BaseRecord, Factors, load_adapter, save_adapter
from llm_forget.adapters.lora_config import explicit_targets, plain_config
from llm_forget.errors import AdapterError

log = logging.getLogger("llm_forget")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EMBEDDINGS = ("lm_head", "embed_out", "embed_tokens", "wte")


@dataclass(frozen=True)
class Exported:
    """An exported adapter, and its distance from the original.

    Attributes:
        folder: the new folder.
        rank: the rank of every module.
        residual: ‖ΔW − ΔW'‖ / ‖ΔW‖ from the truncation, before rounding; 0 if no rank was cut.
        rounding: the same ratio after rounding to the stored dtype.
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
    base_folder: str | Path | None = None,
    method: str | None = None,
    results: Mapping[str, object] | None = None,
    tolerance: float = 1e-3,
    allow_lossy: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Write an adapter that vLLM, SGLang, llama.cpp and PEFT all apply alike.

    Ranks up to ``max_rank`` stay exact (smaller ones are padded with zeros). Larger ones are truncated by SVD, and the
    card states the error.

    Args:
        source: an adapter or its folder.
        target: the folder to create.
        max_rank: the largest rank the servers accept; vLLM's default is 16.
        dtype: the dtype in which A and B are stored. All computation is in fp32.
        base: name, revision and digest of the base, if the adapter does not record them or records a local path.
        base_folder: the base, to check that it has all layers. Names of known wrappers are removed from the adapter's names if
            that makes them fit.
        method: one line on how it was trained, for the card.
        results: measurements for the card, by name.
        tolerance: the largest residual that is accepted.
        allow_lossy: accept any residual.
        overwrite: replace an existing adapter.

    Raises:
        AdapterError: the adapter is not plain LoRA, changes a head or embedding, does not fit its base, or has no name or
            digest of it; the truncation loses more than ``tolerance``; a value is too large for ``dtype``; or the folder exists.
    """
    adapter = source if isinstance(source, Adapter) else load_adapter(source)
    stored = as_dtype(dtype)
    if base_folder is None:
        refuse_wrapped(adapter.modules)
    else:
        adapter = named_as_in(base_folder, adapter)
    record = _published_base(adapter.base, base or BaseRecord())
    _refuse_embeddings(adapter)
    cut = truncate(adapter, max_rank)
    if cut.residual > tolerance and not allow_lossy:
        rank = needed_rank(adapter, tolerance)
        served = vllm_rank(rank)
        setting = f"vLLM then needs --max-lora-rank {served}" if served else "more than vLLM accepts"
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
    """Write an adapter in the exported form although its base is not recorded, for arithmetic on files alone.

    Args:
        adapter: the adapter to write.
        target: the folder to create.
        max_rank: larger ranks are truncated by SVD, with any residual; it is returned and stated in the card.
        method: one line on how it was made, for the card.
        results: measurements for the card, by name.
        overwrite: replace an existing adapter.

    Raises:
        AdapterError: ``max_rank`` is below 1, names carry a wrapper's component, or the folder exists.
    """
    refuse_wrapped(adapter.modules)
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
    if not any(factors.B.any() for factors in plain.modules.values()):
        log.warning(
            "note: the adapter changes nothing: all its factors B are zero in %s", str(dtype).removeprefix("torch.")
        )
    rounding = relative_distance(plain, replace(original, base=record))
    card = adapter_card(record, plain.rank, cut.residual, rounding, dtype, method, results or {})
    folder = save_adapter(plain, target, card=card, overwrite=overwrite)
    return Exported(folder, plain.rank, cut.residual, rounding)


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype for a dtype or its name.

    Raises:
        AdapterError: it is not float32, bfloat16 or float16.
    """
    known = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if known is None or known not in DTYPES.values():
        raise AdapterError(f"dtype {dtype} given; {', '.join(DTYPES)} are allowed.")
    return known


def _published_base(recorded: BaseRecord, given: BaseRecord) -> BaseRecord:
    """The record to publish: the given values, else the adapter's, without local paths."""
    if recorded.digest and given.digest and recorded.digest != given.digest:
        raise AdapterError(
            f"the adapter was made for weights with digest {recorded.digest[:12]}…, and the given base has "
            f"{given.digest[:12]}…: another model. Give the base it was trained on."
        )
    name, digest = given.name or recorded.name, given.digest or recorded.digest
    if not name or not digest:
        missing = " and no ".join(word for word, value in (("name", name), ("digest", digest)) if not value)
        raise AdapterError(
            f"the adapter records no {missing} of its base, which users of the adapter need. Pass "
            "base=BaseRecord(name, revision, weights_digest(base folder))."
        )
    return BaseRecord(public_name(name), given.revision or recorded.revision, digest)


def public_name(name: str) -> str:
    """A hub id unchanged; for a local folder only its last component, since the path means nothing elsewhere."""
    is_local = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or Path(name).exists()
    return Path(name).resolve().name if is_local else name


def _refuse_embeddings(adapter: Adapter) -> None:
    found = [module for module in adapter.modules if module.rpartition(".")[2] in EMBEDDINGS]
    if found:
        raise AdapterError(
            f"the adapter changes {', '.join(found)}: servers disagree about a LoRA on embeddings or head, and if "
            "the two are tied it changes both. Train with the linear layers of the blocks as target_modules only."
        )


def _one_rank(cut: Adapter, original: Adapter, record: BaseRecord, dtype: torch.dtype) -> Adapter:
    """The same change with one rank for all modules, stored in ``dtype``."""
    rank = cut.rank
    modules = {module: _padded(module, factors, rank, dtype) for module, factors in cut.modules.items()}
    targets = [
        target
        for target in explicit_targets(original.config, original.modules)
        if any(module == target or module.endswith(f".{target}") for module in modules)
    ]
    return Adapter(plain_config(dict.fromkeys(modules, rank), targets, original.config), modules, record)


def _padded(module: str, factors: Factors, rank: int, dtype: torch.dtype) -> Factors:
    """A (rank, in) and B (out, rank), padded with zeros. The scaling is 1 already."""
    out, width = factors.shape
    a, b = torch.zeros(rank, width), torch.zeros(out, rank)
    a[: factors.rank], b[:, : factors.rank] = factors.A, factors.B
    return Factors(cast(a, dtype, f"A of {module}"), cast(b, dtype, f"B of {module}"), 1.0)


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The tensor in another dtype.

    Raises:
        AdapterError: a value is too large for it.
    """
    result = tensor.to(dtype)
    if not torch.isfinite(result).all():
        raise AdapterError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, too large for {dtype}; use bfloat16 or float32."
        )
    return result
