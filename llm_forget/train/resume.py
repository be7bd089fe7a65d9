"""Save and resume training. A resumed run ends with the same weights as a run without interruption."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from llm_forget.errors import Interrupted, UserError
from llm_forget.model.weights import restore_trainable, trainable_state
from llm_forget.train.checkpoint import (
    CHECKPOINT_FILES,
    check_identity,
    checkpoints,
    is_of_run,
    newest_whole,
    pack,
    read_checkpoint,
    rng_state,
    set_rng_state,
    write_checkpoint,
)
from llm_forget.utils.files import next_to, real_folder
from llm_forget.utils.signals import Told, told_to_end
from llm_forget.utils.written import remove_written

# Both layouts: a run has one folder for each phase. The second pattern is what a killed process left of a checkpoint.
_PATTERNS = tuple(
    f"{phase}{name}"
    for phase in ("", "phase-*/")
    for name in (*(f"step-*/{file}" for file in CHECKPOINT_FILES), *(f".step-*/{file}" for file in CHECKPOINT_FILES))
)


@dataclass
class Saving:
    """Settings for saving and resuming one run.

    Attributes:
        folder: the folder of the run's checkpoints.
        identity: recipe, digests of data and model, and number of processes (``checkpoint.run_identity``).
        every: optimizer steps between checkpoints; 0 saves only on a signal to end.
        keep: number of checkpoints to keep.
        at_end: also save after the last step, because another phase follows.
        resume: resume from the newest undamaged checkpoint, if there is one.
        say: called with notes for the user.
    """

    folder: Path
    identity: Mapping[str, Any]
    every: int
    keep: int
    at_end: bool = False
    resume: bool = False
    say: Callable[[str], None] = print

    def source(self) -> Path | None:
        """The checkpoint to resume from, checked against this run's identity; None to start at the first step."""
        found = newest_whole(self.folder, self.say) if self.resume else None
        if found is not None:
            check_identity(found, self.identity)
            self.say(f"resuming from {found}")
        return found


class Resumable:
    """A mixin for ``transformers.Trainer``: complete checkpoints without pickle, in the same format on every backend.

    Attributes:
        saving: where and when to save; None saves nothing.
        stateful: name → object with state that belongs to the run (a stop rule, dual variables, a log). Objects with
            ``state_dict`` and ``load_state_dict`` are saved.
    """

    saving: Saving | None = None
    stateful: Mapping[str, Any] = MappingProxyType({})

    def resume_or_begin(self: Any) -> None:
        """Call ``train()``, from the newest checkpoint if the run resumes.

        Raises:
            Interrupted: the process received SIGTERM, SIGINT or SIGHUP and has saved a checkpoint if possible.
            UserError: the checkpoint belongs to another run.
        """
        if self.saving is None:
            self.train()
            return
        source = self.saving.source()
        if self.is_deepspeed_enabled:
            self.saving.say("no checkpoints are written with DeepSpeed, because it stores its state as pickles")
            self.train()
            return
        with told_to_end("a checkpoint is saved at the end of this step; a second Ctrl-C ends at once") as told:
            watch = SaveSteps(self.saving, told, self)
            self.add_callback(watch)
            self.train(resume_from_checkpoint=None if source is None else str(source))
        if watch.interrupted:
            where = newest_whole(self.saving.folder, self.saving.say)
            again = "run the same command again" if self.saving.resume else "add --resume true to the same command"
            how = (
                f"nothing could be saved in {self.saving.folder}; start again"
                if where is None
                else f"saved {where}; {again} to resume from there"
            )
            number = told.signal or signal.SIGTERM  # another process was told
            name = signal.Signals(number).name
            raise Interrupted(f"received {name} after step {self.state.global_step}: {how}", 128 + number)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Override the Trainer's method: write one safetensors file and JSON files, atomically."""
        tensors: dict[str, Tensor] = {}
        state = {
            "trainable": trainable_state(self.accelerator.unwrap_model(model)),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "rng": _of_every_process(rng_state()),
            "objects": {name: item.state_dict() for name, item in self._savable().items()},
        }
        tree = pack(state, tensors)
        if self.is_world_process_zero():
            texts = {TRAINER_STATE_NAME: json.dumps(_trainer_state(self.state))}
            try:
                saving: Saving = self.saving
                write_checkpoint(
                    saving.folder, self.state.global_step, tree, tensors, saving.identity, texts, saving.keep
                )
            except OSError as error:  # a full disk must not end training; earlier checkpoints are intact
                self.saving.say(f"no checkpoint at step {self.state.global_step}: {error}; training continues")
        self.accelerator.wait_for_everyone()

    def _savable(self) -> dict[str, Any]:
        return {name: item for name, item in self.stateful.items() if is_stateful(item)}

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        self._resumed = read_checkpoint(Path(resume_from_checkpoint))
        target = self.accelerator.unwrap_model(self.model if model is None else model)
        restore_trainable(target, self._resumed.pop("trainable"))
        objects = self._resumed.pop("objects")
        for name, item in self._savable().items():
            item.load_state_dict(objects[name])

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        _load_optimizer(self.optimizer, self._resumed.pop("optimizer"))
        self.lr_scheduler.load_state_dict(self._resumed.pop("scheduler"))

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        """The Trainer calls this after it has skipped the batches of earlier steps, so no random number is drawn twice."""
        if checkpoint is not None:
            set_rng_state(self._resumed.pop("rng")[self.args.process_index])


class SaveSteps(TrainerCallback):
    """Decides when to save, and ends training after a signal to end."""

    def __init__(self, saving: Saving, told: Told, trainer: Any) -> None:
        self.saving, self.told, self.trainer = saving, told, trainer
        self.interrupted = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save every few steps, on a signal, and at the end if ``at_end``; never after the stop rule has ended the run."""
        last = state.global_step >= state.max_steps
        told = self._any_process_told()
        if (control.should_training_stop and not last) or getattr(self.trainer, "non_finite_at", None) is not None:
            return  # only measuring and writing are left; resuming from an earlier checkpoint repeats them
        due = self.saving.every > 0 and (state.global_step % self.saving.every == 0 and not last)
        if due or told or (last and self.saving.at_end and self.saving.every > 0):
            control.should_save = True
        if told:
            self.interrupted = True
            control.should_training_stop = True

    def _any_process_told(self) -> bool:
        """Whether any process received the signal, so that all of them stop at the same step."""
        told = self.told.is_set()
        if self.trainer.args.world_size > 1:
            flag = torch.tensor(float(told), device=self.trainer.args.device)
            told = bool(self.trainer.accelerator.reduce(flag, reduction="sum") > 0)
        return told


def checkpoint_folder(output_dir: str) -> Path:
    """The folder of a run's checkpoints, next to the run folder. It is removed when the run is complete."""
    return next_to(output_dir, "checkpoints")


def check_checkpoints(output_dir: str, *, resume: bool, overwrite: bool) -> None:
    """Check for checkpoints of an interrupted run before any computation, and remove them if the recipe overwrites.

    Raises:
        UserError: there are checkpoints, and the recipe neither resumes nor overwrites; or something else has their name.
    """
    folder = checkpoint_folder(output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"output_dir: {folder}, the folder for checkpoints, is a file; move it, or give another output_dir"
        )
    if resume or not _all_checkpoints(folder):
        return
    if not overwrite:
        raise UserError(
            f"output_dir: an interrupted run left checkpoints in {folder}; add --resume true to continue it, "
            "or --overwrite true to start again"
        )
    drop_checkpoints(output_dir)


def drop_finished(output_dir: str) -> None:
    """Remove the checkpoints of a run that is complete, but was killed before it removed them."""
    run, found = real_folder(output_dir), _all_checkpoints(checkpoint_folder(output_dir))
    if found and all(is_of_run(one, run) for one in found):
        drop_checkpoints(output_dir)


def drop_checkpoints(output_dir: str) -> None:
    """Remove the checkpoints of a complete run. Files that no run wrote stay, and so does their folder."""
    if PartialState().is_main_process:
        remove_written(checkpoint_folder(output_dir), _PATTERNS)


def _all_checkpoints(folder: Path) -> list[Path]:
    return [one for phase in (folder, *folder.glob("phase-*")) for one in checkpoints(phase)]


def is_stateful(item: Any) -> bool:
    """Whether an object can save and restore its state."""
    return callable(getattr(item, "state_dict", None)) and callable(getattr(item, "load_state_dict", None))


def _of_every_process(value: Any) -> list[Any]:
    from accelerate.utils import gather_object

    return list(gather_object([value]))


def _trainer_state(state: Any) -> dict[str, Any]:
    """The Trainer's own state, which it reads back on resuming. The state of callbacks is in ``stateful`` instead."""
    return {**asdict(state), "stateful_callbacks": {}}


def _load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Restore an optimizer's state. The state of a sharded parameter is sharded in the same way."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for index, entries in state["state"].items():
        placements = getattr(parameters[index], "placements", None)
        if placements is None:
            continue
        from torch.distributed.tensor import distribute_tensor

        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameters[index].shape:
                moved = value.to(parameters[index].device)
                entries[name] = distribute_tensor(moved, parameters[index].device_mesh, placements)
    optimizer.load_state_dict(state)
