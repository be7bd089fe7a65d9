"""Check an adapter against its base and against the rules of each server.

A server may load the adapter, refuse it, or load it and silently apply another change than the trained one.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from llm_forget.adapters.base_layers import FLOATS, Misfit, base_layers
from llm_forget.adapters.lora import BaseRecord, first_tensor, read_base_record, read_config, weights_path
from llm_forget.adapters.lora_config import (
    LORA_TENSOR,
    ambiguous_alpha,
    config_problems,
    ranks_and_scalings,
    tensor_problems,
)
from llm_forget.adapters.parity import Parity, Prompt, compare_logits
from llm_forget.adapters.server_rules import RULES, VLLM_MEASURED, Facts, Outcome, relies_on_patterns
from llm_forget.errors import AdapterError, UserError
from llm_forget.utils.digests import StoredTensor, stored_tensors, weights_digest
from llm_forget.utils.weight_files import model_config

Status = Literal["loads", "refuses", "wrong", "merged only"]


@dataclass(frozen=True)
class Verdict:
    """How one server treats an adapter.

    Attributes:
        server: its name.
        status: ``loads``; ``refuses``; ``wrong``, if it loads but applies another change; or ``merged only``, for a server
            that takes no adapters.
        reasons: one sentence each; empty if it loads.
    """

    server: str
    status: Status
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The result of a check.

    Attributes:
        base: whether the base has the digest that the adapter records.
        verdicts: one per server.
        notes: findings that leave the numbers correct but may cause trouble.
        parity: the comparison of logits, if requested and possible.
    """

    base: Literal["same", "different", "not recorded"]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    parity: Parity | None

    @property
    def ok(self) -> bool:
        """Whether the base does not differ, all servers that take adapters load this one, and logits agree."""
        served = all(verdict.status in ("loads", "merged only") for verdict in self.verdicts)
        return self.base != "different" and served and (self.parity is None or self.parity.ok)

    def report(self) -> str:
        """The findings as lines of text."""
        lines = [f"base: {self.base}"]
        for verdict in self.verdicts:
            lines += [f"{verdict.server}: {verdict.status}", *(f"  - {reason}" for reason in verdict.reasons)]
        if self.parity is not None:
            lines.append(
                f"logits: exported differs by {self.parity.exported:.2e}, merged by {self.parity.merged:.2e} "
                f"({self.parity.allowed:.2e} allowed; the adapter itself changes them by {self.parity.effect:.2e})"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def diagnose(base: str | Path, adapter: str | Path, *, max_rank: int = 16, prompts: Sequence[Prompt] = ()) -> Diagnosis:
    """Check an adapter's folder against its base and against each server.

    Args:
        base: the folder of the base model, in safetensors.
        adapter: the adapter's folder.
        max_rank: vLLM's --max-lora-rank; its default is 16.
        prompts: texts, or lists of token ids, to compare logits on; none for no comparison. The comparison loads the base in
            fp32 four times in sequence, and writes a merged copy into the temporary folder.

    Raises:
        AdapterError: there is no adapter, its files are damaged, or its weights are a pickle.
        UserError: there is no base.
    """
    base, adapter = Path(base), Path(adapter)
    config = read_config(adapter)
    try:
        tensors = stored_tensors(weights_path(adapter))
    except AdapterError:
        raise
    except UserError as error:
        raise AdapterError(str(error)) from error
    layers = base_layers(base)
    problems = (*config_problems(config), *tensor_problems(tensors))
    ranks = {match["module"]: tensors[name].shape[0] for name, match in _sides(tensors, "A") if tensors[name].shape[0]}
    scalings, damaged, misfits = _scalings(config, ranks)
    damaged += _damaged(adapter, tensors)
    shapes = _shapes(tensors)
    misfit = layers.misfit_of(shapes, config) if shapes else None
    record = read_base_record(adapter, config)
    digest = weights_digest(base) if record.digest or prompts else None
    match: Literal["same", "different", "not recorded"] = "not recorded"
    if record.digest:
        match = "same" if record.digest == digest else "different"
    facts = Facts(
        folder=adapter,
        config=config,
        problems=problems,
        damaged=tuple(damaged),
        misfits=(*misfits, *_described(misfit), *(() if shapes else ("the weights are not pairs of A and B",))),
        dropped=_dropped(misfit),
        ranks=ranks,
        scalings=scalings,
        model=model_config(base),
        max_rank=max_rank,
    )
    wrong = ("the base is not the one it was trained on: the digests differ",) if match == "different" else ()
    verdicts = tuple(_verdict(server, rule, facts, wrong) for server, rule in RULES.items())
    notes = _notes(facts, record, tensors)
    parity = None
    if prompts and digest:
        if problems or verdicts[-1].status != "loads":  # the last is PEFT's, the reference
            notes += ("logits were not compared; resolve the findings above first",)
        else:
            parity = compare_logits(
                base, adapter, BaseRecord(record.name or base.name, record.revision, digest), prompts
            )
    return Diagnosis(match, verdicts, notes, parity)


def _verdict(server: str, rule: Callable[[Facts], Outcome] | None, facts: Facts, wrong: Sequence[str]) -> Verdict:
    if rule is None:
        return Verdict(server, "merged only", ("recent versions cannot load an adapter: use a merged model",))
    refused, others = rule(facts)
    status: Status = "refuses" if refused else "wrong" if wrong or others else "loads"
    return Verdict(server, status, (*refused, *wrong, *others))


def _sides(tensors: Mapping[str, StoredTensor], side: str) -> list[tuple[str, Any]]:
    """(tensor name, match) of every A or every B with two dimensions; others are reported as problems elsewhere."""
    matches = [(name, LORA_TENSOR.fullmatch(name)) for name in tensors if len(tensors[name].shape) == 2]
    return [(name, match) for name, match in matches if match and match["side"] == side]


def _scalings(config: Mapping[str, Any], ranks: Mapping[str, int]) -> tuple[dict[str, float], list[str], list[str]]:
    """The trained scaling of each module, the reason if the config gives none, and the first rank that contradicts it."""
    try:
        found = ranks_and_scalings(config, ranks)
    except AdapterError as error:
        return {}, [str(error)], []
    scalings = {module: scaling for module, (_, scaling) in found.items()}
    misfits = [
        f"{module} has rank {ranks[module]}, but the config says {rank}"
        for module, (rank, _) in found.items()
        if rank != ranks[module]
    ]
    return scalings, [], misfits[:1]


def _shapes(tensors: Mapping[str, StoredTensor]) -> dict[str, tuple[int, int]]:
    """(out, in) of every module's change; empty if there are no pairs of A and B."""
    widths = {match["module"]: tensors[name].shape[1] for name, match in _sides(tensors, "A")}
    heights = {match["module"]: tensors[name].shape[0] for name, match in _sides(tensors, "B")}
    paired = widths.keys() == heights.keys()
    return {module: (heights[module], width) for module, width in widths.items()} if paired else {}


def _described(misfit: Misfit | None) -> tuple[str, ...]:
    if misfit is None or misfit.found is None:
        return ()
    return (f"{misfit.module} is {misfit.found} in the base, but the adapter expects {misfit.wanted}",)


def _dropped(misfit: Misfit | None) -> tuple[str, ...]:
    if misfit is None or misfit.found is not None:
        return ()
    return (f"the base has no layer {misfit.module}: {misfit.advice}",)


def _damaged(folder: Path, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The first pair that has no rank, a dtype that is no float, or values that are not finite."""
    for name, tensor in tensors.items():
        if not LORA_TENSOR.fullmatch(name):
            continue
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            return [f"{name} has the shape {tensor.shape}; two sizes of 1 or more are needed"]
        if tensor.dtype not in FLOATS:
            return [f"{name} is stored as {tensor.dtype}; convert it to float32, bfloat16 or float16"]
    bad = first_tensor(folder, lambda value: not bool(torch.isfinite(value).all()))
    return [f"{bad} has NaN or infinity: training diverged"] if bad else []


def _notes(facts: Facts, record: BaseRecord, tensors: Mapping[str, StoredTensor]) -> tuple[str, ...]:
    notes = []
    pairs = any(LORA_TENSOR.fullmatch(name) for name in tensors)
    if pairs and first_tensor(facts.folder, lambda value: bool(value.any()), side="B") is None:
        notes.append("all its factors B are zero, so it changes nothing")
    if not record.digest:
        notes.append(
            "the adapter records no digest of its base, so any base with these shapes passes; export it to add one"
        )
    if not weights_path(facts.folder).stat().st_mode & stat.S_IROTH:
        notes.append("other users cannot read the weights, so a server that runs as another user would fail: chmod a+r")
    if relies_on_patterns(facts):
        notes.append(
            f"rank_pattern or alpha_pattern sets the strength of some modules; vLLM {VLLM_MEASURED} honours both, and "
            "earlier versions may not: export the adapter to be safe"
        )
    doubled = None if facts.damaged else ambiguous_alpha(facts.config, facts.ranks)
    if doubled:
        notes.append(
            f"several keys of alpha_pattern match {doubled}; PEFT sorts them when it saves, so training may have used "
            "another one than is read now"
        )
    return tuple(notes)
