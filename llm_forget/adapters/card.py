"""The README.md beside an adapter or a merged model: what it is for, how exact it is, and what it does not do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import yaml

from llm_forget.adapters.lora import DIGEST_KEY, BaseRecord

_SUPPRESSED = """\
## What this does not do

This adapter makes the model keep something to itself; it does not take it out. The base weights are unchanged and
still hold it: unload the adapter, or serve it at strength 0, and it is back. If people who can do that must not have
it, merge the adapter into the base and hand out the merged weights only.

Guard these files like the data they were trained on. They are a distilled copy of the forget set, whichever sign they
have now, and turning the sign round can bring out what they suppress: give them to nobody who may not see that data,
and delete them when it has to be deleted.
"""

_WRITTEN = """\
## What this does and does not do

The change is in the weights: there is no adapter to take off. That is no proof that nothing is left, only that what the
measurements above say holds for this model whoever runs it. Whoever has both this model and its base can subtract one
from the other and has the adapter back, which is a distilled copy of the forget set.
"""


VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that takes this rank; None above its largest."""
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
        base: the model it is for; goes into the front matter, where tools read it.
        rank: of every module.
        residual: relative error of cutting ranks, 0 for none.
        rounding: relative error in all, with that of the stored type.
        dtype: the stored type.
        method: how it was trained.
        results: measurements by name.
    """
    exactness = "No rank was cut." if residual == 0 else f"Cutting ranks by SVD lost {residual:.2e} of the change."
    return "\n".join(
        [
            _front_matter(base, "peft", ["llm-forget", "lora", "machine-unlearning"]),
            "# Forget adapter\n",
            f"A LoRA adapter that makes a language model forget. {_method(method)}\n",
            _base_lines(base),
            f"Plain LoRA, rank {rank} and alpha {rank} in every module, stored in {_type_name(dtype)}. {exactness} "
            f"Rounding included, the relative distance from the trained change is {rounding:.2e} (Frobenius norm).\n",
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
    """The card of a merged model; arguments as ``adapter_card``, ``base`` being what it was before."""
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
