"""Gradient checkpointing: recompute a whole block in backward, or keep the results that are expensive to recompute."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import TrainerCallback

from llm_forget.errors import RecipeError
from llm_forget.model.head import below_wrapper

# Recomputing a product with an inner dimension this small (LoRA's B) costs little more than reading its result from memory.
_FEW = 128
_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2)}
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def keeps(_: Any, operation: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    """The policy for selective checkpointing: keep matrix products and fused attention, recompute memory-bound operations.

    Batched products (eager attention) are recomputed too, because their results grow with the square of the row length.
    """
    if operation in _PRODUCTS:
        left = args[_PRODUCTS[operation][0]]
        return CheckpointPolicy.MUST_SAVE if left.shape[-1] > _FEW else CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.MUST_SAVE if operation in _ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(keeps)  # type: ignore[no-untyped-call]


def checkpointing_arguments(chosen: bool | Literal["selective"]) -> dict[str, Any] | None:
    """The arguments of ``gradient_checkpointing_enable`` for ``train.gradient_checkpointing``; None for false."""
    if not chosen:
        return None
    return {"use_reentrant": False, **({"context_fn": _contexts} if chosen == "selective" else {})}


def check_checkpointing(model: Any, chosen: bool | Literal["selective"]) -> None:
    """Check that a model can recompute activations.

    Raises:
        RecipeError: ``train.gradient_checkpointing`` asks for it, and the model's class has none.
    """
    inner = below_wrapper(model)
    if chosen and not getattr(inner, "supports_gradient_checkpointing", True):
        raise RecipeError(
            f"train.gradient_checkpointing: {type(inner).__name__} cannot recompute activations; set it to false"
        )


def frozen_stays_frozen(model: Any) -> None:
    """Disable the gradient of the embeddings, which transformers enables for reentrant checkpoints.

    Our checkpoints are not reentrant. With this gradient, backward would go through all blocks even if only the upper ones
    have an adapter.
    """
    inner = below_wrapper(model)
    if hasattr(inner, "disable_input_require_grads"):
        inner.disable_input_require_grads()


class FrozenStaysFrozen(TrainerCallback):
    """Call ``frozen_stays_frozen`` after the Trainer has enabled checkpointing."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called before the first step."""
        frozen_stays_frozen(model)
