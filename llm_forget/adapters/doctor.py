"""Will it load, and will it mean the same? An adapter against its base and against the rules of each server.

Three answers are told apart: a server loads the adapter, refuses it, or loads it and applies another change than was
trained. The last is the one that nobody notices.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_forget.adapters.card import VLLM_RANKS, vllm_rank
from llm_forget.adapters.lora import BaseRecord, read_base_record, read_config, weights_path
from llm_forget.adapters.lora_config import (
    LORA_TENSOR,
    Problem,
    config_problems,
    matching_key,
    rank_and_scaling,
    reversible,
    tensor_problems,
    untargeted,
)
from llm_forget.adapters.parity import Parity, Prompt, compare_logits
from llm_forget.digests import StoredTensor, stored_tensors, weights_digest
from llm_forget.errors import AdapterError, UserError

Status = Literal["loads", "refuses", "wrong", "merged only"]


@dataclass(frozen=True)
class Verdict:
    """What one server does with an adapter.

    Attributes:
        server: its name.
        status: ``loads``; ``refuses``; ``wrong``, which is loads but applies another change; or ``merged only``, for a
            server that takes no adapters at all.
        reasons: why, one a line; empty when it simply loads.
    """

    server: str
    status: Status
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """All that was found.

    Attributes:
        base: whether the base has the digest that the adapter records.
        verdicts: one a server.
        notes: what does no harm to the numbers and may still be in the way.
        parity: logits compared, when asked for and possible.
    """

    base: Literal["same", "different", "not recorded"]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    parity: Parity | None

    @property
    def ok(self) -> bool:
        """True when the base is not another one, every server that takes adapters loads this one, and logits agree."""
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


@dataclass(frozen=True)
class _Facts:
    """What the rules look at: the files' headers and the config, nothing loaded."""

    folder: Path
    config: Mapping[str, Any]
    problems: tuple[Problem, ...]
    ranks: Mapping[str, int]  # by module, as stored
    scalings: Mapping[str, float]  # by module, as PEFT computes them; empty where it could not
    model: Mapping[str, Any]  # the base's config.json
    max_rank: int


def diagnose(base: str | Path, adapter: str | Path, *, max_rank: int = 16, prompts: Sequence[Prompt] = ()) -> Diagnosis:
    """Check an adapter's folder against its base and against each server.

    Args:
        base: the folder of the base model, in safetensors.
        adapter: the adapter's folder.
        max_rank: the largest rank that vLLM is started with (its --max-lora-rank; 16 unless set).
        prompts: texts, or lists of token ids, to compare logits on; none for no comparison. It loads the base in fp32
            four times, one after the other, and writes a merged copy of it into the folder for temporary files.

    Raises:
        AdapterError: no adapter there, its files are damaged, or its weights are a pickle.
        UserError: no base there.
    """
    base, adapter = Path(base), Path(adapter)
    config = read_config(adapter)
    try:
        tensors = stored_tensors(weights_path(adapter))
    except AdapterError:
        raise
    except UserError as error:
        raise AdapterError(str(error)) from error
    weights = stored_tensors(base)
    problems = (*config_problems(config), *tensor_problems(tensors))
    ranks = {match["module"]: tensors[name].shape[0] for name, match in _sides(tensors, "A")}
    scalings, unreadable = _scalings(config, ranks)
    record = read_base_record(adapter, config)
    digest = weights_digest(base) if record.digest or prompts else None
    match: Literal["same", "different", "not recorded"] = "not recorded"
    if record.digest:
        match = "same" if record.digest == digest else "different"
    facts = _Facts(adapter, config, problems, ranks, scalings, _model_config(base), max_rank)
    refused = (*unreadable, *_misfits(config, tensors, weights))
    wrong = ("the base is not the one it was trained on: its digest differs",) if match == "different" else ()
    verdicts = tuple(_verdict(server, rule(facts), refused, wrong) for server, rule in _RULES.items())
    notes = _notes(facts, record)
    parity = None
    if prompts and digest:
        if problems or verdicts[-1].status != "loads":  # the last is PEFT's, which everything is compared with
            notes += ("logits were not compared: the findings above come first",)
        else:
            parity = compare_logits(
                base, adapter, BaseRecord(record.name or base.name, record.revision, digest), prompts
            )
    return Diagnosis(match, verdicts, notes, parity)


_Outcome = tuple[list[str], list[str]]  # reasons for which a server refuses; reasons for which it is wrong


def _verdict(server: str, outcome: _Outcome, refused: Sequence[str], wrong: Sequence[str]) -> Verdict:
    if server == "Ollama":
        return Verdict(server, "merged only", ("recent versions build no model from an adapter: ship a merged one",))
    all_refused, all_wrong = [*refused, *outcome[0]], [*wrong, *outcome[1]]
    status: Status = "refuses" if all_refused else "wrong" if all_wrong else "loads"
    return Verdict(server, status, (*all_refused, *all_wrong))


def _vllm(facts: _Facts) -> _Outcome:
    refused, wrong = _plain_only(facts)
    largest = max([_config_rank(facts), *facts.ranks.values()])
    if largest > facts.max_rank:
        needed = vllm_rank(largest)
        remedy = f"start it with --max-lora-rank {needed}" if needed else f"it takes {VLLM_RANKS[-1]} at most"
        refused.append(f"rank {largest} is above its limit of {facts.max_rank}: {remedy}, or export at a lower rank")
    alpha, rank = _config_alpha(facts), _config_rank(facts)
    root = math.sqrt(rank) if facts.config.get("use_rslora") else rank
    return refused, wrong + _rescaled(facts, lambda _: alpha / root, "it drops rank_pattern and alpha_pattern")


def _sglang(facts: _Facts) -> _Outcome:
    refused, wrong = _plain_only(facts)
    added = _added_tokens(facts)
    if added:
        refused.append(f"added_tokens.json adds {', '.join(added[:3])}: remove the file if the base knows these tokens")
    alpha, rank = _config_alpha(facts), _config_rank(facts)
    return refused, wrong + _rescaled(facts, lambda _: alpha / rank, "it always scales by alpha/r of the config")


def _llama_cpp(facts: _Facts) -> _Outcome:
    refused, wrong = _plain_only(facts)
    alpha = _config_alpha(facts)
    # An alpha of 0 counts as "not given" there, and the scale is then 1.
    reason = "it knows lora_alpha and each tensor's own rank, nothing else"
    return refused, wrong + _rescaled(facts, lambda module: alpha / facts.ranks[module] if alpha else 1.0, reason)


def _peft(facts: _Facts) -> _Outcome:
    unreadable = ("peft_type", "unknown_key", "unexpected")
    refused = [str(problem) for problem in facts.problems if problem.feature in unreadable]
    wrong = [
        str(problem)
        for problem in facts.problems
        # PEFT repeats PiSSA and its like when it loads; LoftQ's base it cannot make again.
        if problem.feature == "initialisation" and not reversible(facts.config.get("init_lora_weights"))
    ]
    try:
        stray = untargeted(facts.config, facts.ranks)
    except AdapterError as error:
        return [*refused, str(error)], wrong
    if stray:
        wrong.append(f"target_modules does not reach {stray[0]} (one of {len(stray)}): it drops these factors")
    return refused, wrong


_RULES: Mapping[str, Callable[[_Facts], _Outcome]] = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "llama.cpp": _llama_cpp,
    "Ollama": lambda _: ([], []),
    "PEFT": _peft,
}


def _plain_only(facts: _Facts) -> _Outcome:
    """What servers other than PEFT do with anything but plain LoRA on the linear layers of the blocks."""
    refused = [str(problem) for problem in facts.problems if problem.feature != "initialisation"]
    wrong = [str(problem) for problem in facts.problems if problem.feature == "initialisation"]
    heads = [module for module in facts.ranks if module.rpartition(".")[2] in ("lm_head", "embed_out")]
    if heads:
        tied = ", which this base ties to its embeddings" if facts.model.get("tie_word_embeddings") else ""
        refused.append(f"it changes {heads[0]}{tied}: a LoRA on the head is not served everywhere; leave it out")
    return refused, wrong


def _rescaled(facts: _Facts, served: Callable[[str], float], reason: str) -> list[str]:
    """The complaint that modules are applied at another strength than trained, with the worst of them; or none."""
    ratios = {
        module: served(module) / trained if trained else math.inf
        for module, trained in facts.scalings.items()
        if not math.isclose(served(module), trained, rel_tol=1e-6)
    }
    if not ratios:
        return []
    worst = max(ratios, key=lambda module: abs(math.log(abs(ratios[module]) or 1e-300)))
    return [
        f"{reason}: {len(ratios)} of {len(facts.ranks)} modules are applied at another strength, {worst} at "
        f"{ratios[worst]:.4g} times the trained one; export it first"
    ]


def _config_rank(facts: _Facts) -> int:
    rank = facts.config.get("r", 8)
    return rank if isinstance(rank, int) and rank > 0 else 1


def _config_alpha(facts: _Facts) -> float:
    alpha = facts.config.get("lora_alpha", 8)
    return alpha if isinstance(alpha, int | float) else math.nan


def _sides(tensors: Mapping[str, StoredTensor], side: str) -> list[tuple[str, Any]]:
    """(tensor name, match) of all A or all B with two dimensions; others have been counted among the problems."""
    matches = [(name, LORA_TENSOR.fullmatch(name)) for name in tensors if len(tensors[name].shape) == 2]
    return [(name, match) for name, match in matches if match and match["side"] == side]


def _scalings(config: Mapping[str, Any], ranks: Mapping[str, int]) -> tuple[dict[str, float], list[str]]:
    """The trained scaling of every module, and why there is none where the config and the tensors disagree."""
    scalings: dict[str, float] = {}
    refused = []
    for module, stored in ranks.items():
        try:
            rank, scalings[module] = rank_and_scaling(config, module)
        except AdapterError as error:
            return {}, [str(error)]
        if rank != stored:
            refused.append(f"{module} has rank {stored}, where the config says {rank}")
    return scalings, refused[:1]


def _misfits(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], base: Mapping[str, StoredTensor]
) -> list[str]:
    """Modules that the base does not have, or has in another shape; the first of them."""
    widths = {match["module"]: tensors[name].shape[1] for name, match in _sides(tensors, "A")}
    heights = {match["module"]: tensors[name].shape[0] for name, match in _sides(tensors, "B")}
    if not widths or widths.keys() != heights.keys():
        return ["the weights are not pairs of A and B"]
    for module, width in widths.items():
        names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        stored = next((base[name] for name in names if name in base), None)
        wanted = (width, heights[module]) if config.get("fan_in_fan_out") else (heights[module], width)
        # A packed weight has a shape of its own; a tied head has no weight of its own. Neither says anything.
        if stored is None and module.rpartition(".")[2] not in ("lm_head", "embed_out"):
            return [f"the base has no layer {module}"]
        if stored is not None and stored.dtype in ("F64", "F32", "BF16", "F16") and stored.shape != wanted:
            return [f"{module} is {stored.shape} in the base, and the adapter expects {wanted}"]
    return []


def _model_config(base: Path) -> dict[str, Any]:
    try:
        config = json.loads((base / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _added_tokens(facts: _Facts) -> list[str]:
    """Tokens of the adapter's added_tokens.json beyond the base's vocabulary: SGLang looks there and refuses them."""
    try:
        tokens = json.loads((facts.folder / "added_tokens.json").read_text("utf-8"))
    except (OSError, ValueError):
        return []
    known = facts.model.get("vocab_size", 0)
    return [token for token, number in tokens.items() if number >= known] if isinstance(tokens, dict) else []


def _notes(facts: _Facts, record: BaseRecord) -> tuple[str, ...]:
    notes = []
    if not record.digest:
        notes.append("the adapter records no digest of its base, so any base of its shape passes; export it to add one")
    if not weights_path(facts.folder).stat().st_mode & stat.S_IROTH:
        notes.append("the weights cannot be read by other users, and a server that runs as one would fail: chmod a+r")
    patterns = facts.config.get("alpha_pattern") or {}
    doubled = [m for m in facts.ranks if len({patterns[k] for k in patterns if matching_key([k], m) == k}) > 1]
    if doubled:
        notes.append(
            f"several keys of alpha_pattern match {doubled[0]}; PEFT sorts them when it saves, so another may have "
            "been used in training than is read now"
        )
    return tuple(notes)
