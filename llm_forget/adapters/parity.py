"""Do PEFT on the fly, the exported adapter and the merged model say the same?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_forget.adapters.export import export_adapter, merge
from llm_forget.adapters.lora import BaseRecord, load_adapter

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class Parity:
    """The largest differences between logits over all prompts, positions and tokens, everything in fp32.

    Attributes:
        exported: between PEFT on the adapter and PEFT on what ``export_adapter`` makes of it.
        merged: between PEFT on the adapter and what ``merge`` makes of it.
        effect: between PEFT on the adapter and the base: how much the adapter does.
        allowed: the largest of the first two that counts as equal, for logits of this size.
    """

    exported: float
    merged: float
    effect: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Both forms give the adapter's logits; a NaN is no agreement."""
        return self.exported <= self.allowed and self.merged <= self.allowed


def compare_logits(base: Path, adapter: Path, record: BaseRecord, prompts: Sequence[Prompt]) -> Parity:
    """Export and merge an adapter into a temporary folder, and compare what they say to prompts with PEFT on the fly.

    Args:
        base: the base model's folder.
        adapter: the adapter's folder, plain LoRA.
        record: name and digest of that base.
        prompts: at least one; texts need a tokenizer in the base's folder.

    Raises:
        AdapterError: the adapter can be neither exported nor merged; the message says why.
    """
    tokens = _tokenized(base, prompts)
    plain = load_adapter(adapter)
    with tempfile.TemporaryDirectory() as scratch:
        exported, merged = Path(scratch) / "exported", Path(scratch) / "merged"
        # At its own rank: what the cut to a lower one costs is export_adapter's to say.
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
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    return [list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt) for prompt in prompts]


def _logits(model_folder: Path, adapter: Path | None, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
    """(T, V) logits of each prompt, one at a time, so that no padding enters."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return [model(torch.tensor([list(prompt)])).logits[0] for prompt in tokens]


def _largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """NaN where either has one: torch's max passes it on, and a Python max over prompts might not."""
    return float(torch.stack([(a - b).abs().max() for a, b in zip(first, second, strict=True)]).max())
