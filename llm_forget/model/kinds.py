"""Which models can be used: causal language models of text. Others are refused in words, by their config or a short trial."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from llm_forget.errors import RecipeError
from llm_forget.model.batching import evaluating
from llm_forget.model.head import below_wrapper, head_reads_only, output_head
from llm_forget.model.structure import vocabulary_of
from llm_forget.model.weights import autocast_like

_OTHER_HEADS = re.compile(
    r"Classification|QuestionAnswering|MultipleChoice|MaskedLM|ForPreTraining|NextSentence|Reward|Regression|Retrieval"
)
# Largest change of a logit by later tokens that counts as none, in standard deviations of the logits.
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 0.02


def check_config(config: Any, name: str) -> None:
    """Check from its config that a model is a causal language model, before its weights are read.

    Args:
        config: its transformers config.
        name: its name in messages.

    Raises:
        RecipeError: it is an encoder, an encoder-decoder, a vision or audio model, a classifier or a reward model.
    """
    kind = f"model.name: {name} is a {config.model_type} model"
    if getattr(config, "is_encoder_decoder", False):
        raise RecipeError(f"{kind}, an encoder-decoder; {_WANTED}")
    heads = [one for one in getattr(config, "architectures", None) or [] if _OTHER_HEADS.search(one)]
    if heads:
        raise RecipeError(
            f"{kind} that was saved as {heads[0]}, so it has no language-model head to unlearn with; {_WANTED}"
        )
    if causal_class(config) is None and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        raise RecipeError(f"{kind}, for which transformers has no causal language model; {_WANTED}")


_WANTED = "give a model that AutoModelForCausalLM loads and that reads text from left to right, such as Llama or GPT-2"


def causal_class(config: Any) -> Any:
    """The class with which transformers loads a causal language model of this config; None if it has none of its own."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def check_attention(wanted: str, config: Any) -> None:
    """Check that a model's class has the attention that a recipe asks for.

    Args:
        wanted: ``model.attention``.
        config: the model's transformers config.

    Raises:
        RecipeError: it has not.
    """
    cls = causal_class(config)
    flag = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}.get(wanted)
    if cls is not None and flag is not None and not getattr(cls, flag, True):
        raise RecipeError(f"model.attention: {cls.__name__} has no {wanted} attention; set it to auto or eager")


def check_forward(model: nn.Module) -> None:
    """Run a few tokens through a loaded model, and check that it is a causal language model of text.

    Each position must see the tokens before it only, and the head must map each hidden state to logits by itself, because the
    toolkit runs it on answer positions alone.

    Args:
        model: wrapped or not, on its device. Its mode and its weights stay as they are.

    Raises:
        RecipeError: it has no language-model head, cannot run on text alone, or lets tokens see later ones.
    """
    inner = below_wrapper(model)
    kind = f"the model ({type(inner).__name__})"
    try:
        output_head(model)
    except (TypeError, AttributeError, NotImplementedError):
        raise RecipeError(f"{kind} has no language-model head; {_WANTED}") from None
    weight = next(model.parameters())
    most = vocabulary_of(inner.config)
    first = [(7 * place + 3) % most for place in range(12)]
    ids = torch.tensor([first, [*first[:6], *((token + 1) % most for token in first[6:])]], device=weight.device)
    positions = torch.zeros_like(ids, dtype=torch.bool)
    positions[0, 3:], positions[1, 5:9] = True, True
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    try:
        with evaluating(model), torch.no_grad(), autocast_like(model):
            logits = model(**inputs).logits.float()
            with head_reads_only(model, positions):
                read = model(**inputs).logits.float()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code may raise any error; no data have been read
        raise RecipeError(f"{kind} cannot run on text alone: {type(error).__name__}: {error}; {_WANTED}") from error
    spread = float(logits.std())
    tolerance = (_TOLERANCE if weight.dtype == torch.float32 else _TOLERANCE_HALF) * max(spread, 1e-6)
    if float((logits[0, :6] - logits[1, :6]).abs().max()) > tolerance:
        raise RecipeError(f"{kind} lets a token see later ones, as an encoder does; {_WANTED}")
    if read.shape != logits[positions].shape or float((read - logits[positions]).abs().max()) > 20 * tolerance:
        raise RecipeError(
            f"{kind} computes its logits from several positions at once, which is not supported; {_WANTED}"
        )
