"""Supervised fine-tuning with TRL, to train a target (on all data) or an oracle (on all data except the forget set)."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import set_seed

from llm_forget.config import FinetuneRecipe
from llm_forget.data.encode import Encoded, encode_all
from llm_forget.data.examples import read_examples
from llm_forget.data.sources import resolve_sources
from llm_forget.errors import UserError
from llm_forget.model.checkpointing import FrozenStaysFrozen, check_checkpointing, frozen_stays_frozen
from llm_forget.model.experts import without_router_loss
from llm_forget.model.generate import save_end_tokens
from llm_forget.model.limits import check_rows, padding_id
from llm_forget.model.load import (
    check_model,
    frozen_dtype,
    load_tokenizer,
    load_weights,
    locate_model,
    refuse_quantised,
)
from llm_forget.model.logprobs import score_answers
from llm_forget.model.measure import answer_logps, refuse_not_finite
from llm_forget.model.packing import packed_attention
from llm_forget.model.weights import held_in_bf16
from llm_forget.train.arguments import common_arguments
from llm_forget.train.build import check_run, make_trainable
from llm_forget.train.callbacks import MetricsLog, ProgressBar, note
from llm_forget.train.run_folder import environment, replacement, write_result, writing_run
from llm_forget.train.trackers import drop_logs, keep_logs, sent_settings, tracking
from llm_forget.utils.build import to_yaml
from llm_forget.utils.files import new_folder, write_text
from llm_forget.utils.terminal import say

_TRIED = 8  # rows that are scored before training


def finetune(recipe: FinetuneRecipe, console: Console | None = None) -> dict[str, Any]:
    """Fine-tune on all of a recipe's data and write a run folder with the adapter, the merged model, or both.

    Args:
        recipe: the checked recipe.
        console: a console for progress; standard error by default.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: the recipe, the data or the launch command cannot be used. Checked before a model is loaded.
    """
    with writing_run(recipe.output_dir):
        return _finetune(recipe, console or Console(stderr=True))


def _finetune(recipe: FinetuneRecipe, console: Console) -> dict[str, Any]:
    if recipe.model.quantization is not None:
        refuse_quantised(trains=False, merges=recipe.merge)
    check_run(recipe)
    named = {f"data[{index}]": [source] for index, source in enumerate(recipe.data)}
    sources, notes = resolve_sources(named, recipe.data_dir, "this recipe")
    examples = [example for found in sources.values() for source in found for example in read_examples(source, notes)]
    located = replace(recipe.model, name=locate_model(recipe.model.name))
    check_model(located)
    tokenizer = load_tokenizer(located)
    rows, report = encode_all(tokenizer, examples, recipe.encoding, role="training")
    for warning in filter(None, (replacement(recipe.output_dir), *notes, *report.warnings)):
        note(console, warning)

    started = time.monotonic()
    set_seed(recipe.seed)  # before the adapter is initialized; the Trainer seeds again later
    model = load_weights(located, trainable=recipe.adapter is None)
    for warning in check_rows(model, rows, "training"):
        note(console, warning)
    check_checkpointing(model, recipe.train.gradient_checkpointing)
    model = make_trainable(model, recipe.adapter, compiled=recipe.train.compile, say=partial(note, console))
    refuse_not_finite(answer_logps(model, rows[:_TRIED], tokenizer.pad_token_id or 0)[1].tolist())
    logged = tracking(recipe.output_dir, recipe.train.trackers, sent_settings(recipe))
    with (
        logged as trackers,
        without_router_loss(model),
        packed_attention(model, wanted=recipe.train.packs, say=partial(note, console)),
    ):
        trainer = _train(recipe, model, tokenizer, rows, console, MetricsLog(trackers=trackers))
    if not all(bool(value.isfinite().all()) for value in model.parameters() if value.requires_grad):
        raise UserError(
            "training diverged: the trained weights hold NaN or infinity, so nothing is written; lower train.learning_rate"
        )
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    result = {
        "schema": 1,
        "rows": len(rows),
        "encoding": {"training": report.counts()},
        "steps": trainer.state.global_step,
        "seconds": time.monotonic() - started,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "environment": environment(),
    }
    if PartialState().is_main_process:
        _write(recipe, model, tokenizer, result)
        drop_logs(recipe.output_dir, recipe.train.trackers)
        made = "model" if recipe.adapter is None or recipe.merge else "adapter"
        text = f"loss {losses[0]:.3f} → {losses[-1]:.3f} ({recipe.output_dir}/{made})"
        say(console, f"{Path(recipe.output_dir).name}: {text}")
    PartialState().wait_for_everyone()
    return result


def _train(
    recipe: FinetuneRecipe, model: Any, tokenizer: Any, rows: Sequence[Encoded], console: Console, log: MetricsLog
) -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    class AnswerTrainer(SFTTrainer):
        """TRL's trainer with our forward pass. TRL's loss works in tiles of the vocabulary, which doubles the time on a CPU."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            scores = score_answers(model, {**inputs, "answer_mask": inputs["labels"] != -100})
            tokens = scores.mask.sum() if num_items_in_batch is None else num_items_in_batch
            loss = -scores.token_logps.sum() / tokens
            if num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes  # the count is over all processes, but DDP averages
            return (loss, {}) if return_outputs else loss

    # Our own tokens and labels, so that training, scoring and unlearning use exactly the same tokens.
    labelled = [
        {
            "input_ids": list(row.input_ids),
            "labels": [-100] * row.prompt_length + list(row.input_ids[row.prompt_length :]),
            "length": len(row.input_ids),
        }
        for row in rows
    ]
    arguments = common_arguments(recipe.train, recipe.seed, recipe.adapter is not None, autocast=held_in_bf16(model))
    trainer = AnswerTrainer(
        model=model,
        args=SFTConfig(
            # TRL's default is to recompute activations
            **{"gradient_checkpointing": False, **arguments, "remove_unused_columns": True},
            num_train_epochs=recipe.train.epochs,
            train_sampling_strategy="group_by_length",
            max_length=None,
        ),
        train_dataset=Dataset.from_list(labelled),
        processing_class=_padded(tokenizer, model),
        callbacks=[ProgressBar(console, f"learning {Path(recipe.output_dir).name}"), log],
    )
    trainer.remove_callback(PrinterCallback)
    # TRL enables the embeddings' gradient when it is created, and the Trainer again when training begins
    frozen_stays_frozen(model)
    trainer.add_callback(FrozenStaysFrozen())
    with without_router_loss(model):  # TRL asks for it when the trainer is made
        trainer.train()
    return trainer


def _padded(tokenizer: Any, model: Any) -> Any:
    """A tokenizer whose padding token the model has, for TRL. The one that is written to the run folder is not changed."""
    pad = padding_id(tokenizer, model)
    if tokenizer.pad_token_id == pad:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer


def _write(recipe: FinetuneRecipe, model: Any, tokenizer: Any, result: dict[str, Any]) -> None:
    with new_folder(Path(recipe.output_dir)) as folder:
        if recipe.adapter is not None:
            model.save_pretrained(folder / "adapter")
        if recipe.adapter is None or recipe.merge:
            # merge in fp32 and cast afterwards, because a merge in bf16 would round twice
            merged = model if recipe.adapter is None else model.float().merge_and_unload()
            save_end_tokens(merged, tokenizer)
            merged.to(frozen_dtype(recipe.model)).save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        keep_logs(recipe.output_dir, recipe.train.trackers, folder)
        write_result(folder, {**result, "adapter": asdict(recipe.adapter) if recipe.adapter else None})
