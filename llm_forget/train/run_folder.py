"""The run folder: recipe, adapter or model, metrics and result. It is written atomically and contains no forget text."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_forget._version import __version__
from llm_forget.adapters.card import adapter_card
from llm_forget.adapters.export import export_adapter
from llm_forget.adapters.lora import BaseRecord, load_adapter, save_adapter
from llm_forget.config import UnlearnRecipe
from llm_forget.errors import Interrupted, RecipeError
from llm_forget.model.generate import save_end_tokens
from llm_forget.stop import Measurement
from llm_forget.train.trackers import keep_logs
from llm_forget.utils.build import to_yaml
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.files import folder_digest, new_folder, real_folder, tidy, write_json, write_record, write_text
from llm_forget.utils.output import writing
from llm_forget.utils.search_record import SEARCH_NAME, read_record
from llm_forget.utils.signals import Ended
from llm_forget.utils.written import what_is_replaced

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "safetensors", "bitsandbytes")
RESULT_NAME = "result.json"  # written last, so a folder without it is not a complete run


@dataclass(frozen=True)
class RunRecord:
    """The result of a run, in numbers, names and digests only.

    Attributes:
        method: its name in the recipe.
        reason: a sentence: why the run ended and which state was kept.
        known_before: whether the forget probability was above the forget target before the first step; None without one.
        before: the measurement before the first step.
        after: the measurement of the kept state.
        forget_target: the forget probability that counted as forgotten, or None.
        utility_floor: the lowest allowed retain probability, or None.
        steps: optimizer steps of all phases.
        seconds: wall time from loading the model to the last measurement.
        details: numbers that the method reports.
        data_digests: set → digest.
        forget_rows: number of rows in the forget set.
        retain_rows: number of rows in the retain set.
        encoding: set → counts of its encoding: rows, tokens, truncated examples and the tokens that were cut, and so on.
        noise_off: the base's own dropout and noise that was off in training, as ``name value``.
        reached: whether the kept state is at the forget target; None without one.
        row_targets: what the row targets were computed from, their mean, and how they were shifted; None without them.
    """

    method: str
    reason: str
    known_before: bool | None
    before: Measurement
    after: Measurement
    forget_target: float | None
    utility_floor: float | None
    steps: int
    seconds: float
    details: dict[str, float]
    data_digests: dict[str, str]
    forget_rows: int
    retain_rows: int
    encoding: dict[str, dict[str, int]] = field(default_factory=dict)
    noise_off: list[str] = field(default_factory=list)
    reached: bool | None = None
    row_targets: dict[str, Any] | None = None


@contextmanager
def writing_run(output_dir: str, *, resumes: bool = False) -> Iterator[None]:
    """Context of a run that writes ``output_dir``; see ``utils.output.writing``. A run that writes nothing needs none.

    Raises:
        Interrupted: a signal ended the run outside its training steps; the message says how to go on.
    """
    if not output_dir:
        yield
        return
    same = "run the same command again" if resumes else "run the same command with --resume true"
    newest = f"the newest checkpoint in {output_dir}.checkpoints"
    again = f"{same}, which resumes from {newest} if there is one (fine-tuning starts again)"
    with writing(output_dir, remedy=again):
        try:
            yield
        except Ended as ended:
            saved = any(Path(f"{output_dir}.checkpoints").glob("**/step-*/checkpoint.json"))
            told = "run the same command again" if resumes else "add --resume true"
            how = f"; {told} to resume from the checkpoints in {output_dir}.checkpoints" if saved else ""
            how = how or ("; run the same command again" if resumes else "")
            raise Interrupted(f"{ended}: nothing is written to {output_dir}{how}", ended.exit_code) from None


def check_output(output_dir: str, overwrite: bool) -> None:
    """Check before any computation that the output folder may be written.

    Raises:
        RecipeError: the folder contains a run and ``overwrite`` is off, or it contains something else.
    """
    folder = real_folder(output_dir)
    tidy(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / RESULT_NAME).is_file():
        raise RecipeError(f"output_dir: {folder} exists and is not a run folder; give another folder")
    if not overwrite:
        raise RecipeError(f"output_dir: {folder} already contains a run; give another folder, or add --overwrite true")


def replacement(output_dir: str) -> str | None:
    """A note on what the run replaces; None if there is nothing yet."""
    folder = real_folder(output_dir)
    if not output_dir or not (folder / RESULT_NAME).is_file():
        return None
    removed, kept = what_is_replaced(folder)
    stays = f". Files that no run wrote are kept: {_few(kept)}" if kept else ""
    return f"{output_dir} is replaced when this run is complete: {_few(removed)}{stays}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def environment() -> dict[str, Any]:
    """Versions and hardware, as recorded in the run folder."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "llm_forget": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": found,
        "gpus": gpus,
        "torch_threads": torch.get_num_threads(),
    }


def write_run(
    recipe: UnlearnRecipe,
    record: RunRecord,
    model: nn.Module,
    tokenizer: Any,
    metrics: list[dict[str, Any]],
    state: dict[str, torch.Tensor] | None = None,
    *,
    base: str | None = None,
) -> Path:
    """Write the whole run folder under a temporary name, then rename it.

    Args:
        recipe: the run's recipe.
        record: the run's result.
        model: the model with its adapter, or the fully trained model.
        tokenizer: saved together with a fully trained model.
        metrics: one row per step and per check.
        state: the gathered trained weights if they are sharded over processes; None uses the model's own.
        base: the folder or hub id of the model; None if the caller loaded it.
    """
    target = Path(recipe.output_dir)
    digest = None
    # a base with a merged adapter is in no folder, so it has no digest
    if base is not None and recipe.model.adapter is None and Path(base).is_dir():
        digest = weights_digest(base)
    record_of_base = BaseRecord(base or recipe.model.name, recipe.model.revision, digest)
    with new_folder(target) as folder:
        if recipe.adapter is None:
            save_end_tokens(model, tokenizer)
            model.save_pretrained(folder / "model", state_dict=state)  # type: ignore[operator]
            tokenizer.save_pretrained(folder / "model")
        else:
            _write_adapter(model, folder, record_of_base, record, state)
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        write_json(folder / "env.json", environment())
        if recipe.search is not None:
            write_json(folder / SEARCH_NAME, read_record(Path(recipe.search).expanduser()))
        write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in metrics))
        keep_logs(recipe.output_dir, recipe.train.trackers, folder)
        write_result(folder, {"schema": 1, **asdict(record), "base_digest": digest})
    return target


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``result.json`` with the digests of the run's adapter and model, and a checksum of the content."""
    digests = {f"{part}_digest": folder_digest(folder / part) for part in ("adapter", "model")}
    write_record(folder / RESULT_NAME, {**result, **digests})


def _write_adapter(
    model: nn.Module, folder: Path, base: BaseRecord, record: RunRecord, state: dict[str, torch.Tensor] | None
) -> None:
    """Save with PEFT, then convert the adapter for inference servers: alpha equals rank, with base digest and model card."""
    raw = folder / "peft"
    model.save_pretrained(raw, state_dict=state)  # type: ignore[operator]
    adapter = load_adapter(raw)
    results = {
        "forget probability before": record.before.forget,
        "forget probability after": record.after.forget,
        "retain probability before": record.before.retain,
        "retain probability after": record.after.retain,
        "why the run ended": record.reason,
        **{f"digest of the {name} data (ids)": digest[:16] for name, digest in record.data_digests.items()},
    }
    known = {name: value for name, value in results.items() if value is not None}
    if base.digest is not None:
        target = folder / "adapter"
        export_adapter(adapter, target, max_rank=adapter.rank, base=base, method=record.method, results=known)
    else:
        # the base has no folder for a digest: it was merged, given in memory, or loaded from the hub
        card = adapter_card(base, adapter.rank, 0.0, 0.0, torch.float32, record.method, known)
        save_adapter(replace(adapter, base=base), folder / "adapter", card=card)
    shutil.rmtree(raw)
