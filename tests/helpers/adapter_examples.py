"""Small random adapters and a tiny base model for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from llm_forget.adapters.lora import Adapter, BaseRecord, Factors
from llm_forget.adapters.lora_config import rank_and_scaling

SHAPES = {
    "model.layers.0.self_attn.q_proj": (24, 20),
    "model.layers.0.mlp.down_proj": (20, 40),
    "model.layers.1.self_attn.q_proj": (24, 20),
    "model.layers.1.mlp.down_proj": (20, 40),
}
# One example of each kind of PEFT configuration.
PEFT_SETTINGS: list[dict[str, Any]] = [
    {},
    {"r": 9, "use_rslora": True},
    {"r": 2, "lora_alpha": -3},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*": 5}},
    {"target_modules": "all-linear", "r": 2},
    {"target_modules": r".*\.1\..*(q|up)_proj"},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["model.layers.0.self_attn.v_proj"]},
]
BASE = BaseRecord(name="org/tiny", revision="abc", digest="1" * 64)


def random_adapter(
    seed: int = 0,
    *,
    ranks: Sequence[int] = (4,),
    alphas: Sequence[float] = (8,),
    rslora: bool = False,
    dtype: torch.dtype = torch.float32,
    modules: Sequence[str] = tuple(SHAPES),
    base: BaseRecord = BASE,
) -> Adapter:
    """Return an adapter whose modules cycle through ``ranks`` and ``alphas``; the first of each is the config's default."""
    generator = torch.Generator().manual_seed(seed)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "r": ranks[0],
        "lora_alpha": alphas[0],
        "use_rslora": rslora,
        "target_modules": sorted(modules),
        "rank_pattern": {m.replace(".", r"\."): ranks[i % len(ranks)] for i, m in enumerate(modules)},
        "alpha_pattern": {m.replace(".", r"\."): alphas[i % len(alphas)] for i, m in enumerate(modules)},
    }
    factors = {}
    for module in modules:
        out, width = SHAPES[module]
        rank, scaling = rank_and_scaling(config, module)
        a = torch.randn(rank, width, generator=generator) / width**0.5
        b = torch.randn(out, rank, generator=generator)
        factors[module] = Factors(a.to(dtype), b.to(dtype), scaling)
    return Adapter(config, factors, base)


@st.composite
def adapters(draw: st.DrawFn, max_rank: int = 64) -> Adapter:
    """Draw random adapters: ranks 1–64, different per module, with or without rsLoRA, bf16 or fp32, any set of modules."""
    modules = draw(st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, unique=True))
    rank, alpha = st.integers(1, max_rank), st.one_of(st.integers(1, 64), st.floats(0.5, 50.0))
    return random_adapter(
        draw(st.integers(0, 2**31)),
        ranks=draw(st.lists(rank, min_size=1, max_size=4)),
        alphas=draw(st.lists(alpha, min_size=1, max_size=4)),
        rslora=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])),
        modules=modules,
    )


def change(adapter: Adapter, module: str) -> Tensor:
    """Return ΔW of a module in fp64, computed by hand; zeros for modules without an adapter."""
    if module not in adapter.modules:
        return torch.zeros(SHAPES[module], dtype=torch.float64)
    factors = adapter.modules[module]
    return factors.scaling * (factors.B.double() @ factors.A.double())


def scale_of(adapter: Adapter) -> float:
    """Return an upper bound of ΔW from its factors, as the scale for rounding errors."""
    return max(float(f.A.double().norm() * f.B.double().norm() * abs(f.scaling)) for f in adapter.modules.values())


def tiny_llama(seed: int = 0, *, tied: bool = False) -> Any:
    """Return a LlamaForCausalLM with two layers and random weights, in fp32 and eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_llama(folder: Path, *, tied: bool = False, max_shard_size: str = "50GB") -> Path:
    """Save the tiny Llama as Transformers does, and return its folder."""
    tiny_llama(tied=tied).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def trained_adapter(base: Path, folder: Path, seed: int = 1, **config: Any) -> Path:
    """Save a PEFT adapter with random factors for a saved base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    peft_model.save_pretrained(folder)
    return folder


TOKENS = torch.tensor([[1, 5, 9, 33, 2, 60, 17], [4, 4, 8, 15, 16, 23, 42]])


def logits(base: Path, adapter: Path | None = None) -> Tensor:
    """Return the logits of a saved base for ``TOKENS``, with or without an adapter loaded by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        result: Tensor = model.eval()(TOKENS).logits
    return result


def largest(difference: Tensor) -> float:
    """Return the largest absolute entry."""
    return float(difference.abs().max())
