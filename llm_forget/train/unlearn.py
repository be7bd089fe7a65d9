"""One unlearning run, from a checked recipe to a complete run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import set_seed

from llm_forget.config import UnlearnRecipe
from llm_forget.data.examples import Example
from llm_forget.errors import RecipeError
from llm_forget.model.checkpointing import check_checkpointing
from llm_forget.model.experts import without_router_loss
from llm_forget.model.fused_head import fused_head
from llm_forget.model.fused_lora import fused_lora
from llm_forget.model.limits import check_rows, padding_id
from llm_forget.model.load import (
    check_adapter_fits,
    check_model,
    load_tokenizer,
    load_weights,
    locate_model,
    read_config,
)
from llm_forget.model.lower_trial import lower_blocks_once
from llm_forget.model.packing import packed_attention
from llm_forget.model.steady import steady_base
from llm_forget.model.weights import in_shards, trainable_state
from llm_forget.train.aiming import aim
from llm_forget.train.alternatives import alternative_source, encoded_alternatives
from llm_forget.train.build import NOWHERE, Parts, check_head, check_layer, make_parts, make_trainable, trained_blocks
from llm_forget.train.callbacks import note
from llm_forget.train.default import hidden_size, scaled, settled
from llm_forget.train.launch import is_sharded
from llm_forget.train.more_rows import Making, swapped_top
from llm_forget.train.origin import OpenBase, base_of, has_base, score_base
from llm_forget.train.prepare import UnlearnSets, prepare
from llm_forget.train.resume import drop_checkpoints
from llm_forget.train.run import Run, Watch
from llm_forget.train.run_folder import RunRecord, replacement, write_run, writing_run
from llm_forget.train.shared import Shared, further, known_rows
from llm_forget.train.trackers import drop_logs, sent_settings, tracking
from llm_forget.utils.search_record import read_record
from llm_forget.utils.terminal import say


def unlearn(
    recipe: UnlearnRecipe,
    console: Console | None = None,
    *,
    in_memory: Mapping[str, list[Example]] = MappingProxyType({}),
    lenient: bool = False,
) -> RunRecord:
    """Run a recipe and write its run folder.

    Args:
        recipe: the checked recipe.
        console: a console for progress; standard error by default.
        in_memory: set → its examples, instead of those that the recipe names.
        lenient: leave out further retain terms whose rows cannot be made, as for a recipe that names no method.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: the recipe, the data or the launch command cannot be used; found before a model is loaded if possible.
    """
    if recipe.output_dir == NOWHERE:
        raise RecipeError("output_dir is empty; give a folder for the run")
    with writing_run(recipe.output_dir, resumes=recipe.resume):
        return finished(recipe, console, in_memory=in_memory, lenient=lenient).record


def finished(
    recipe: UnlearnRecipe,
    console: Console | None = None,
    *,
    in_memory: Mapping[str, list[Example]] = MappingProxyType({}),
    lenient: bool = False,
    shared: Shared | None = None,
    watch: Watch | None = None,
) -> Finished:
    """``unlearn``, with the model; the caller holds ``writing_run``.

    Args:
        recipe: the checked recipe.
        console: a console for progress; standard error by default.
        in_memory: set → its examples, instead of those that the recipe names.
        lenient: as for ``unlearn``.
        shared: what several runs have in common; None to compute it.
        watch: called after every check with the model and the measurement; what it raises ends the run.
    """
    given, recipe = recipe, settled(recipe, base=has_base(recipe))
    parts = make_parts(recipe)
    if recipe.search is not None:
        read_record(Path(recipe.search).expanduser())
    base = locate_model(recipe.model.name)  # only once: for a GGUF file this computes digests of gigabytes
    located = replace(recipe.model, name=base)
    check_model(located)
    if located.adapter is not None:
        check_adapter_fits(base, located.adapter)
    tokenizer = load_tokenizer(located)
    if shared is not None:
        sets = shared.sets
    else:
        sets = prepare(
            recipe.data,
            recipe.encoding,
            tokenizer,
            rows=recipe.stop.rows,
            seed=recipe.seed,
            data_dir=recipe.data_dir,
            in_memory=in_memory,
        )
    recipe = scaled(recipe, given, rows=len(sets.forget), width=hidden_size(read_config(located)))

    def load() -> Any:
        return load_weights(located, trainable=recipe.adapter is None)

    return run_on(
        recipe,
        parts,
        sets,
        tokenizer,
        load,
        console,
        base=base,
        open_base=base_of(recipe, base),
        lenient=lenient or not given.method,
        shared=shared,
        watch=watch,
    )


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        record: the content of ``result.json``.
        model: the model with its adapter, or the fully trained model.
        metrics: one row per step and per check.
    """

    record: RunRecord
    model: Any
    metrics: list[dict[str, Any]]


def run_on(
    recipe: UnlearnRecipe,
    parts: Parts,
    sets: UnlearnSets,
    tokenizer: Any,
    load: Callable[[], Any],
    console: Console | None = None,
    *,
    base: str | None = None,
    open_base: OpenBase | None = None,
    lenient: bool = False,
    shared: Shared | None = None,
    watch: Watch | None = None,
) -> Finished:
    """Run a recipe on a model: add the adapter, train, and write the run folder.

    Both the command line and the Python API call this function.

    Args:
        recipe: the checked recipe; if ``output_dir`` is ``NOWHERE``, nothing is written.
        parts: the recipe's parts, from ``make_parts``.
        sets: its data.
        tokenizer: a tokenizer with a padding token.
        load: returns the model; called after all other checks.
        console: a console for progress; standard error by default.
        base: the folder or hub id of the model; None if the caller loaded it.
        open_base: opens the model before it learned the forget rows; None if there is none at hand.
        lenient: leave out further retain terms whose rows cannot be made, with a note; for a recipe that names no method.
        shared: what several runs have in common; None to compute it.
        watch: as for ``finished``.

    Raises:
        UserError: alternative answers that the method needs are missing, or the disk is full.
    """
    console = console or Console(stderr=True)
    method = parts.method
    source, alternatives = alternative_source(recipe.alternative, method, sets.forget_examples), None
    encoded = partial(
        encoded_alternatives, sets.forget_examples, tokenizer, recipe.alternative, recipe.encoding, recipe.seed
    )
    if source not in (None, "model"):
        alternatives = encoded(source)
    for warning in filter(None, (replacement(recipe.output_dir), *sets.warnings)):
        note(console, warning)

    started = time.monotonic()
    origin = score_base(open_base, recipe, method, sets, tokenizer) if shared is None else shared.origin
    model = load()
    for name in ("forget", "retain", "validation", "holdout"):
        for warning in check_rows(model, getattr(sets, name), name):
            note(console, warning)
    set_seed(recipe.seed)  # before the adapter is initialized; the Trainer seeds again later
    if source == "model":
        alternatives = encoded(source, model, console)
    check_rows(model, alternatives or [], "alternative")
    making = Making(recipe, sets, tokenizer, model, partial(note, console))
    parts, more = further(parts, making, lenient=lenient) if shared is None else known_rows(parts, shared)
    swapped = swapped_top(method.needs, making) if shared is None else shared.swapped
    for name, rows in more.items():
        check_rows(model, rows, name)
    blocks = trained_blocks(method, model, parts.layer)
    if blocks is None:
        check_layer(recipe.adapter, parts.objective, model)
    check_checkpointing(model, recipe.train.gradient_checkpointing)
    model = make_trainable(model, recipe.adapter, blocks, compiled=recipe.train.compile, say=partial(note, console))
    if recipe.output_dir != NOWHERE and recipe.adapter is not None:
        check_head(model)
    with (
        without_router_loss(model),
        steady_base(model) as noise,
        packed_attention(model, wanted=recipe.train.packs, say=partial(note, console)),
        lower_blocks_once(model),
        fused_head(model, wanted=not is_sharded(), say=partial(note, console)),
        fused_lora(model, wanted=not is_sharded() and not recipe.train.compile, say=partial(note, console)),
    ):
        if noise:
            off = ", ".join(noise)
            note(console, f"the model's own dropout and noise are off, because the reference has none: {off}")
        pad = padding_id(tokenizer, model)
        stored, start = (None, None) if shared is None else (shared.aim, shared.start)
        known: dict[str, Any] = {"more_rows": more, "origin": origin, "swapped": swapped, "start": start}
        known["open_base"] = open_base
        known["curvature"] = aim(recipe, model, sets, more, pad, stored)
        run = Run(recipe, parts, sets, model, pad, console, alternatives, base=base, **known)
        run.watch = watch
        settings = sent_settings(recipe)
        with tracking(recipe.output_dir, recipe.train.trackers, settings, resume=recipe.resume) as run.metrics.trackers:
            outcome = run.execute()
    record = RunRecord(
        method=str(recipe.method["name"]),
        reason=outcome.reason,
        known_before=outcome.known_before,
        before=outcome.before,
        after=outcome.after,
        forget_target=run.target,
        utility_floor=run.floor,
        steps=outcome.steps,
        seconds=time.monotonic() - started,
        details=outcome.details,
        data_digests=sets.digests,
        forget_rows=len(sets.forget),
        retain_rows=len(sets.retain),
        encoding=sets.encoding,
        noise_off=noise,
        reached=outcome.reached,
        row_targets=None if run.row_targets is None else run.row_targets.told,
    )
    if recipe.output_dir != NOWHERE:
        # every process takes part in gathering sharded weights
        state = trainable_state(model) if in_shards(model) else None
        if PartialState().is_main_process:
            write_run(recipe, record, model, tokenizer, outcome.metrics, state, base=base)
            drop_logs(recipe.output_dir, recipe.train.trackers)
            drop_checkpoints(recipe.output_dir)
            say(console, f"{record.method}: {record.reason} ({recipe.output_dir})")
        PartialState().wait_for_everyone()
    return Finished(record, model, outcome.metrics)
