"""Build training arguments from a recipe: the same computation on a CPU, one GPU or several."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import TrainingArguments

from llm_forget.config import TrainConfig
from llm_forget.errors import RecipeError
from llm_forget.model.checkpointing import checkpointing_arguments
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.natural import RATE as NATURAL_RATE

# A LoRA adapter starts at zero and is small: with the papers' full fine-tuning rate of 1e-5 it hardly changes.
ADAPTER_LEARNING_RATE = 1e-3
FULL_LEARNING_RATE = 1e-5
_NEVER = 1e30


def common_arguments(
    train: TrainConfig, seed: int, with_adapter: bool, learning_rate: float | None = None, *, autocast: bool = False
) -> dict[str, Any]:
    """Translate a recipe's ``train`` section into arguments for unlearning and fine-tuning.

    Autocast (bf16 products with fp32 trainable weights) is used only if the base weights are in bf16, so that training and
    measuring compute in the same dtype. The Trainer itself does not save, evaluate or report.
    """
    on_cpu = not torch.cuda.is_available()
    default = (
        NATURAL_RATE if train.optimizer == NATURAL else ADAPTER_LEARNING_RATE if with_adapter else FULL_LEARNING_RATE
    )
    checkpointing = {
        "gradient_checkpointing": bool(train.gradient_checkpointing),
        "gradient_checkpointing_kwargs": checkpointing_arguments(train.gradient_checkpointing),
    }
    return {
        **(checkpointing if train.gradient_checkpointing else {}),  # newer transformers warn about these names
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "learning_rate": learning_rate or train.learning_rate or default,
        "lr_scheduler_type": train.schedule,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        # orthogonal steps have the same length for a gradient of any norm
        "max_grad_norm": _NEVER if train.optimizer == NATURAL else train.max_grad_norm,
        "optim": "sgd" if train.optimizer == NATURAL else train.optimizer,
        "use_cpu": on_cpu,
        "bf16": autocast,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not on_cpu,
    }


def unlearning_arguments(
    train: TrainConfig, seed: int, with_adapter: bool, learning_rate: float | None = None, *, autocast: bool = False
) -> TrainingArguments:
    """Arguments for one pass over a schedule, which already contains all epochs."""
    return TrainingArguments(
        num_train_epochs=1, **common_arguments(train, seed, with_adapter, learning_rate, autocast=autocast)
    )


def check_arguments(train: TrainConfig, seed: int) -> None:
    """Check before a model is loaded that transformers can build the learning-rate schedule and the optimizer.

    Raises:
        RecipeError: it cannot. The message has the place in the recipe and the error of transformers.
    """
    from transformers import Trainer, get_scheduler

    try:
        arguments = unlearning_arguments(train, seed, with_adapter=True)
        Trainer.get_optimizer_cls_and_kwargs(arguments)
        stand_in = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        get_scheduler(train.schedule, stand_in, num_warmup_steps=train.warmup_steps, num_training_steps=10)
    except (ValueError, TypeError, ImportError, RuntimeError, AssertionError, OverflowError) as error:
        said = " ".join(str(error).split())
        raise RecipeError(
            f"train: schedule {train.schedule!r} and optimizer {train.optimizer!r} cannot be used: {said}"
        ) from error
