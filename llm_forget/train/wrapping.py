"""What a recipe puts around a method: its wrappers, and the blocks of the model that it trains."""

from __future__ import annotations

from accelerate import PartialState
from torch import nn

from llm_forget.config import UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.model.head import below_wrapper
from llm_forget.model.load import top_blocks
from llm_forget.model.logprobs import hidden_layer
from llm_forget.retain import RetainTerm
from llm_forget.train.objective import Objective
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class
from llm_forget.wrappers import Setting, Wrapper


def build_wrappers(recipe: UnlearnRecipe, method: Method, retain: RetainTerm | None) -> list[Wrapper]:
    """The wrappers that a recipe lists, each checked against the run.

    Raises:
        RecipeError: an unknown one, a bad hyper-parameter, or one that cannot work in this run.
    """
    setting = Setting(
        retain=retain is not None,
        towards=method.towards,
        quantized=recipe.model.quantization is not None,
        sharded=PartialState().distributed_type.name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"),
    )
    found: list[Wrapper] = []
    for given in recipe.wrappers:
        values = dict(given)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError("wrappers: each needs a name; for example wrappers: [{name: sam, rho: 0.01}]")
        wrapper: Wrapper = build(find_class("llm_forget.wrappers", name, "on_gradient"), values, f"wrapper {name}")
        reason = wrapper.refuses(setting)
        if reason is not None:
            raise RecipeError(f"wrapper {name} cannot be used here: {reason}")
        found.append(wrapper)
    return found


def check_layer(recipe: UnlearnRecipe, objective: Objective, model: nn.Module) -> None:
    """Refuse a loss that looks at hidden states below every adapter: they are the reference's, whatever is trained.

    Raises:
        RecipeError: ``adapter.top_share`` begins above the block that the method or the retain term looks at, or the model
            has no such block.
    """
    if recipe.adapter is None or not objective.rows.hidden:
        return
    depth = int(below_wrapper(model).config.get_text_config().num_hidden_layers)
    blocks, layer = top_blocks(recipe.adapter, depth), _hidden_layer(model, objective.layer)
    if blocks is not None and layer < blocks.start:
        raise RecipeError(
            f"adapter.top_share is {recipe.adapter.top_share}, so that block {blocks.start} is the lowest with an adapter, and "
            f"the hidden states of block {layer} are looked at, which nothing changes; set layer to {blocks.start} or more, or "
            "raise top_share"
        )


def trained_blocks(method: Method, model: nn.Module, layer: int | None) -> list[int] | None:
    """The blocks that a method trains, where it trains some only."""
    trained = getattr(method, "trained_layers", None)
    if trained is None:
        return None
    found: list[int] = trained(_hidden_layer(model, layer))
    return found


def _hidden_layer(model: nn.Module, layer: int | None) -> int:
    try:
        return hidden_layer(model, layer)
    except ValueError as error:
        raise RecipeError(f"method or retain term: {error}") from None
