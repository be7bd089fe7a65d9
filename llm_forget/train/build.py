"""What a recipe asks for, checked before data are read and a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_forget.config import RetainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.retain import RetainTerm
from llm_forget.train.arguments import check_arguments
from llm_forget.train.launch import check_launch
from llm_forget.train.objective import Objective
from llm_forget.train.resume import check_checkpoints
from llm_forget.train.run_folder import check_output
from llm_forget.train.trackers import check_trackers
from llm_forget.train.wrapping import build_wrappers
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class
from llm_forget.wrappers import Wrapper

NOWHERE = ""  # the output_dir of a run that leaves nothing on the disk; recipes are refused it


def build_method(recipe: UnlearnRecipe) -> Method:
    """The method that a recipe names, with its hyper-parameters checked."""
    given = dict(recipe.method)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError("method.name: is missing; for example method: {name: npo}")
    cls = find_class("llm_forget.methods", name, "forget_loss")
    method: Method = build(cls, given, f"method {name}")
    if recipe.adapter is None and hasattr(method, "finish"):
        raise RecipeError(f"method {name} works on an adapter; remove `adapter: null` from the recipe")
    return method


def build_retain(config: RetainConfig, method: Method) -> RetainTerm | None:
    """The retain term that a recipe names, or what the method brings."""
    name = method.default_retain if config.name == "default" else config.name
    if name is None:
        return None
    term: RetainTerm = build(
        find_class("llm_forget.retain", name, "retain_loss"), config.settings, f"retain term {name}"
    )
    return term


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for, checked without model and data.

    Attributes:
        method: with its hyper-parameters.
        retain: the retain term, or None.
        wrappers: what goes around the gradient, in order.
        layer: the one block that hidden states are taken from; None for the default.
    """

    method: Method
    retain: RetainTerm | None
    wrappers: Sequence[Wrapper]
    layer: int | None


def make_plan(recipe: UnlearnRecipe) -> Plan:
    """Check everything about a run that can be checked before data are read.

    Raises:
        UserError: the recipe, its output or the way of launching cannot work.
    """
    check_launch()
    if recipe.output_dir != NOWHERE:
        check_output(recipe.output_dir, recipe.overwrite)
        check_checkpoints(recipe.output_dir, resume=recipe.resume, overwrite=recipe.overwrite)
    method = build_method(recipe)
    retain = build_retain(recipe.retain, method)
    if retain is not None and recipe.data.retain is None:
        raise RecipeError("the retain term needs data.retain; add it, or set retain.name: null")
    if recipe.adapter is not None and recipe.adapter.top_share < 1 and hasattr(method, "trained_layers"):
        raise RecipeError(
            f"adapter.top_share is {recipe.adapter.top_share}, and the method {recipe.method['name']} chooses the blocks that "
            "it trains by itself; leave top_share out"
        )
    wrappers = build_wrappers(recipe, method, retain)
    layer = layer_looked_at(method, retain)
    check_arguments(recipe.train, recipe.seed)
    check_trackers(recipe.train.trackers, recipe.output_dir)
    return Plan(method, retain, wrappers, layer)


def layer_looked_at(method: Method, retain: RetainTerm | None) -> int | None:
    """The one block that hidden states are taken from; None for the default.

    Raises:
        RecipeError: method and retain term name different ones.
    """
    try:
        return Objective(method, retain).layer
    except ValueError as error:
        raise RecipeError(str(error)) from None
