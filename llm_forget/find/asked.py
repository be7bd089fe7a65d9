"""The model that a search asks, with the prompt format in which its run trained it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.runs.run_files import RECIPE_NAME, read_recipe
from llm_forget.utils.build import build

if TYPE_CHECKING:
    from llm_forget.data.encode import EncodingConfig
    from llm_forget.find.search import Model

_PARTS = ("model", "adapter")  # folders of a run folder


def prompt_format(
    name: str, adapter: str | None, given: Mapping[str, Any] | None = None
) -> tuple[EncodingConfig, str | None]:
    """How the model is asked.

    Args:
        name: ``model.name`` of a recipe.
        adapter: folder of an adapter, or None.
        given: the section ``encoding`` of a recipe; None to take that of the run that wrote the adapter, or else the model.

    Returns:
        The settings, and the run folder whose recipe they are from; None for given ones and for defaults.

    Raises:
        RecipeError: a setting is wrong.
    """
    from llm_forget.data.encode import EncodingConfig

    if given is not None:
        return build(EncodingConfig, dict(given), "--encoding"), None
    for folder in (adapter, name):
        run = None if folder is None else Path(folder).expanduser().parent
        if folder is None or run is None or Path(folder).name not in _PARTS or not (run / RECIPE_NAME).is_file():
            continue
        values = read_recipe(run, []).get("encoding") or {}
        return build(EncodingConfig, values, f"{run / RECIPE_NAME}, encoding"), str(run)
    return EncodingConfig(), None


def load_asked(
    name: str, adapter: str | None, given: Mapping[str, Any] | None = None, *, exact: bool = False
) -> tuple[Model, list[str]]:
    """Load the model that a search asks.

    Args:
        name: folder, ``.gguf`` file or hub id.
        adapter: folder of an adapter, or None.
        given: as for ``prompt_format``.
        exact: load in fp32, for attribution: small changes of a loss are lost in bf16.

    Returns:
        The model, and lines for the user.

    Raises:
        UserError: it cannot be loaded, or a setting is wrong.
    """
    from llm_forget.config import ModelConfig
    from llm_forget.find.search import Model
    from llm_forget.model.load import load_model

    encoding, run = prompt_format(name, adapter, given)
    model, tokenizer = load_model(ModelConfig(name=name, adapter=adapter, dtype="float32" if exact else "auto"))
    notes = [] if run is None else [f"the model is asked with the prompt format of {run}"]
    return Model(model, tokenizer, encoding), notes
