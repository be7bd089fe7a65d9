"""The model card (README.md) of an exported adapter or merged model: base, exactness, results and limits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import yaml

from llm_forget.adapters.lora import DIGEST_KEY, BaseRecord

_SUPPRESSED = """\
## What this does not do

This adapter suppresses knowledge; it does not remove it. The base weights are unchanged and still contain it. Unloading
the adapter, or serving it at strength 0, brings it back. If the people you share with must not have it, merge the adapter
into the base and share only the merged weights.

Protect these files like the data they were trained on. They encode the forget set, whichever sign they have, and the
negated adapter can reveal what they suppress. Give them to nobody who may not see that data, and delete them when the
data has to be deleted.
"""

_WRITTEN = """\
## What this does and does not do

The change is in the weights, so there is no adapter to remove. This does not prove that nothing is left; it means that the
results above hold for this model wherever it runs. Anyone who has both this model and its base can subtract one from the
other and recover the adapter, which encodes the forget set.
"""


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that accepts this rank; None if it is too large."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def adapter_card(
    base: BaseRecord,
    rank: int,
    residual: float,
    rounding: float,
    dtype: torch.dtype,
    method: str | None,
    results: Mapping[str, object],
) -> str:
    """The card of an exported adapter.

    Args:
        base: the model it is for; written to the front matter, where tools read it.
        rank: the rank of every module.
        residual: relative error of the truncation, 0 if none.
        rounding: relative error including the rounding to ``dtype``.
        dtype: the stored dtype.
        method: how it was trained, in one line.
        results: measurements by name.
    """
    exactness = "No rank was truncated." if residual == 0 else f"Truncation by SVD lost {residual:.2e} of the change."
    return "\n".join(
        [
            _front_matter(base, "peft", ["llm-forget", "lora", "machine-unlearning"]),
            "# Forget adapter\n",
            f"A LoRA adapter that makes a language model forget. {_method(method)}\n",
            _base_lines(base),
            f"Plain LoRA, rank {rank} and alpha {rank} in every module, stored in {_type_name(dtype)}. {exactness} "
            f"Including rounding, the relative distance from the trained change is {rounding:.2e} (Frobenius norm).\n",
            _results(results),
            "## Serving\n",
            f"- PEFT: `PeftModel.from_pretrained(base, folder)`\n"
            f"- vLLM: `--enable-lora --max-lora-rank {vllm_rank(rank) or rank} --lora-modules unlearned=folder`\n"
            "- SGLang: `--enable-lora --lora-paths unlearned=folder`\n"
            "- llama.cpp: `convert_lora_to_gguf.py --base base folder`, then `--lora`\n"
            "- Ollama: build from the merged model\n",
            _SUPPRESSED,
        ]
    )


def merged_card(base: BaseRecord, method: str | None, results: Mapping[str, object]) -> str:
    """The card of a merged model. Arguments as for ``adapter_card``."""
    return "\n".join(
        [
            _front_matter(base, "transformers", ["llm-forget", "machine-unlearning"]),
            "# Model after unlearning\n",
            f"A language model with a forget adapter merged into its weights. {_method(method)}\n",
            _base_lines(base),
            _results(results),
            _WRITTEN,
        ]
    )


def _front_matter(base: BaseRecord, library: str, tags: list[str]) -> str:
    fields = {
        "base_model": base.name,
        "base_model_revision": base.revision,
        DIGEST_KEY: base.digest,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    text = yaml.safe_dump({k: v for k, v in fields.items() if v}, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def _base_lines(base: BaseRecord) -> str:
    return (
        f"- Base model: {f'`{base.name}`' if base.name else 'none recorded'}\n"
        f"- Revision: {f'`{base.revision}`' if base.revision else 'none recorded'}\n"
        f"- SHA-256 of the base's weights: {f'`{base.digest}`' if base.digest else 'none recorded'}\n"
    )


def _method(method: str | None) -> str:
    return f"Method: {method.strip().rstrip('.')}." if method and method.strip() else "The method was not recorded."


def _results(results: Mapping[str, object]) -> str:
    if not results:
        return "## Results\n\nNone recorded.\n"
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in results.items())
    return f"## Results\n\n| measure | value |\n|---|---|\n{rows}\n"


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
