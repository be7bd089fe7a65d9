"""The files of one model, and the forms in which they may be served."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from llm_forget.adapters.lora import load_adapter
from llm_forget.auditing.forms import Form
from llm_forget.auditing.rounding import round_weights
from llm_forget.config import ModelConfig
from llm_forget.data.encode import EncodingConfig
from llm_forget.errors import UserError
from llm_forget.model.adapted import attach_adapter, merge_adapter
from llm_forget.model.load import check_adapter_fits, frozen_dtype, load_model, locate_model
from llm_forget.runs import Run, load_run
from llm_forget.utils.build import build
from llm_forget.utils.digests import json_digest, weights_digest


@dataclass(frozen=True)
class Artefact:
    """A model in files.

    Attributes:
        name: its name in tables.
        model: the base.
        adapter: folder of the adapter that is merged into it or served on it; None for a model that is whole.
        home: folder in which its cells are kept; None for the folder of the audited run.
    """

    name: str
    model: ModelConfig
    adapter: Path | None = None
    home: Path | None = None

    @cached_property
    def digest(self) -> str:
        """Digest of the weights and of the adapter; names and paths are not part of it."""
        folder = locate_model(self.model.name)
        base = weights_digest(folder) if Path(folder).is_dir() else [folder, self.model.revision]
        own = [one for one in (self.model.adapter, self.adapter) if one is not None]
        return json_digest([base, *(_adapter_digest(one) for one in own)])

    def load(self, form: Form) -> tuple[Any, Any]:
        """Model and tokenizer in a form. A model without an adapter has no separate one in an adapter form either.

        Raises:
            UserError: it cannot be loaded, or a package for the form is missing.
        """
        fast = frozen_dtype(replace(self.model, dtype="auto"))
        model, tokenizer = load_model(replace(self.model, quantization=None, dtype="float32"))
        separate = form.adapter and form.quantiser is None
        adapter = None if self.adapter is None else check_adapter_fits(locate_model(self.model.name), str(self.adapter))
        if adapter is not None and not separate:
            merge_adapter(model, adapter)
        if form.quantiser is not None:
            model = round_weights(model, form.quantiser)
        elif form.dtype == "bfloat16":
            model.to(torch.bfloat16)
        if form.dtype == "bfloat16" or (form.quantiser is not None and not form.packed):
            model.to(fast)  # rounded weights run in the dtype that is fastest here
        if adapter is not None and separate:
            model = attach_adapter(model, adapter)
        return model.eval(), tokenizer


def _adapter_digest(folder: str | Path) -> Any:
    found = load_adapter(folder)
    return [
        weights_digest({f"{name}.{part}": getattr(one, part).contiguous() for part in "AB"}) + f" {one.scaling}"
        for name, one in sorted(found.modules.items())
    ]


def artefact_of(path: str | Path, *, base: str | None = None) -> tuple[Artefact, Run | None]:
    """The model of a run folder, or of a plain model folder.

    Args:
        path: the folder.
        base: the model that the run's adapter was trained on, if it has moved since.

    Returns:
        The model, and its run if it is one.

    Raises:
        UserError: there is no model in it.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return Artefact(folder.name, ModelConfig(str(folder))), None
    run = load_run(folder)
    if (folder / "adapter").is_dir() and (run.kind == "unlearn" or not (folder / "model").is_dir()):
        values = {key: value for key, value in (run.recipe.get("model") or {}).items() if key != "trust_remote_code"}
        values |= {"name": base} if base is not None else {}
        if not values.get("name"):
            raise UserError(f"{folder} does not say which model its adapter is for; give it with --base")
        config = build(ModelConfig, values, f"{folder}, model")
        return Artefact(folder.name, config, folder / "adapter", folder), run
    if not (folder / "model").is_dir():
        raise UserError(
            f"{folder} has neither adapter/ nor model/; give the folder of a complete run, or a model folder"
        )
    return Artefact(folder.name, ModelConfig(str(folder / "model")), None, folder), run


def encoding_of(run: Run | None) -> EncodingConfig:
    """The prompt settings of a run's recipe, or the defaults."""
    values = {} if run is None else run.recipe.get("encoding") or {}
    return build(EncodingConfig, values, "the run's recipe, encoding")
