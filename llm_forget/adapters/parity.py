"""Compare the logits of an adapter with those of its exported and merged forms."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_forget.adapters.export import export_adapter
from llm_forget.adapters.lora import BaseRecord, load_adapter, read_config
from llm_forget.adapters.lora_config import untargeted
from llm_forget.adapters.merge import merge
from llm_forget.utils.pretrained import load_pretrained, load_pretrained_tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Parity:
    """The largest absolute differences between logits over all prompts, positions and tokens, in fp32.

    Attributes:
        exported: between the adapter and its exported form, both loaded with PEFT.
        merged: between the adapter and the merged model.
        effect: between the adapter and the base: the effect of the adapter itself.
        allowed: the largest difference that counts as equal, for logits of this size.
    """

    exported: float
    merged: float
    effect: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether both forms give the adapter's logits; False if there is a NaN."""
        return self.exported <= self.allowed and self.merged <= self.allowed


def compare_logits(base: Path, adapter: Path, record: BaseRecord, prompts: Sequence[Prompt]) -> Parity:
    """Export and merge an adapter into a temporary folder, and compare logits on some prompts.

    Args:
        base: the base model's folder.
        adapter: the adapter's folder; plain LoRA.
        record: name and digest of the base.
        prompts: one or more; texts need a tokenizer in the base's folder.

    Raises:
        AdapterError: the adapter cannot be exported or merged.
    """
    tokens = _tokenized(base, prompts)
    plain = load_adapter(adapter)
    with tempfile.TemporaryDirectory() as scratch:
        exported, merged = Path(scratch) / "exported", Path(scratch) / "merged"
        # At its own rank, without truncation: export_adapter reports that error.
        export_adapter(plain, exported, base=record, max_rank=plain.rank)
        merge(base, plain, merged, torch.float32)
        reference = _logits(base, adapter, tokens)
        allowed = 1e-4 * max(1.0, max(float(values.abs().max()) for values in reference))
        return Parity(
            exported=_largest_difference(reference, _logits(base, exported, tokens)),
            merged=_largest_difference(reference, _logits(merged, None, tokens)),
            effect=_largest_difference(reference, _logits(base, None, tokens)),
            allowed=allowed,
        )


def _tokenized(base: Path, prompts: Sequence[Prompt]) -> list[list[int]]:
    if not any(isinstance(prompt, str) for prompt in prompts):
        return [list(prompt) for prompt in prompts if not isinstance(prompt, str)]
    tokenizer = load_pretrained_tokenizer(base)
    return [list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt) for prompt in prompts]


def _logits(model_folder: Path, adapter: Path | None, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits of each prompt, (T, V); one prompt per forward pass, without padding."""
    model = load_pretrained(model_folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        # PEFT matches its patterns against all modules: try them out first, in bounded time
        untargeted(read_config(adapter), [name for name, _ in model.named_modules()])
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return [model(torch.tensor([list(prompt)])).logits[0] for prompt in tokens]


def _largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The largest absolute difference; NaN if there is one (torch's max propagates it, Python's may not)."""
    return float(torch.stack([(a - b).abs().max() for a, b in zip(first, second, strict=True)]).max())
