"""Build the objects of a run from a recipe: method, retain term and wrappers. All checks come before data and model are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from llm_forget.config import AdapterConfig, FinetuneRecipe, RetainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.model.blocks import add_adapter, compile_blocks, top_blocks, train_only_blocks
from llm_forget.model.head import below_wrapper, output_head
from llm_forget.model.logprobs import hidden_layer
from llm_forget.model.targets import config_depth
from llm_forget.retain import RetainTerm
from llm_forget.train.arguments import check_arguments
from llm_forget.train.launch import check_launch, is_sharded
from llm_forget.train.more_rows import check_neighbour_floor, check_row_sets
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.natural import check_natural
from llm_forget.train.objective import FurtherTerm, Objective
from llm_forget.train.resume import check_checkpoints, drop_finished
from llm_forget.train.run_folder import check_output
from llm_forget.train.trackers import check_trackers
from llm_forget.utils.build import build
from llm_forget.utils.output import check_inputs_outside
from llm_forget.utils.plugins import find_class, with_defaults
from llm_forget.wrappers import Setting, Wrapper

NOWHERE = ""  # the output_dir of a run that writes nothing; not allowed in a recipe


@dataclass(frozen=True)
class Parts:
    """The parts of a run that a recipe names, built without model and data.

    Attributes:
        method: the method with its hyper-parameters.
        retain: the retain term, or None.
        wrappers: the gradient wrappers, in the order of their application.
        layer: the block whose hidden states are read; None for the default.
        more: further retain terms.
    """

    method: Method
    retain: RetainTerm | None
    wrappers: Sequence[Wrapper]
    layer: int | None
    more: tuple[FurtherTerm, ...] = ()

    @property
    def objective(self) -> Objective:
        """The objective without its weights."""
        return Objective(self.method, self.retain, more=self.more)


def make_parts(recipe: UnlearnRecipe) -> Parts:
    """Build the parts of a run, and check everything that can be checked before data are read.

    Raises:
        UserError: the recipe, its output folder or the launch command cannot be used.
    """
    check_run(recipe)
    method = build_method(recipe)
    retain, more = build_retain(recipe.retain, method), build_more(recipe.retain)
    kept = Objective(method, retain, more=more)
    check_row_sets(kept, retain_given=recipe.data.retain is not None)
    check_neighbour_floor(recipe, kept)
    if recipe.adapter is not None and recipe.adapter.top_share < 1 and method.trained_layers is not None:
        raise RecipeError(
            f"adapter.top_share is {recipe.adapter.top_share}, but the method {recipe.method['name']} chooses its trained blocks "
            "automatically; remove top_share"
        )
    if recipe.adapter is not None and recipe.adapter.inputs == "forget":
        if method.finish is not None:
            raise RecipeError(
                f"adapter.inputs is forget, but the method {recipe.method['name']} sets A itself; remove inputs"
            )
        if recipe.data.retain is None:
            raise RecipeError("adapter.inputs: forget compares the forget rows with rows to keep; add data.retain")
    parts = Parts(method, retain, build_wrappers(recipe, method, bool(kept.kept)), chosen_layer(kept), more)
    if recipe.output_dir != NOWHERE:
        # this check is last, because it removes the checkpoints that the recipe overwrites
        check_checkpoints(recipe.output_dir, resume=recipe.resume, overwrite=recipe.overwrite)
    return parts


def check_run(recipe: UnlearnRecipe | FinetuneRecipe) -> None:
    """Check what unlearning and fine-tuning have in common: launch, output folder, training arguments and trackers.

    Raises:
        UserError: one of them cannot be used.
    """
    check_launch()
    if recipe.output_dir != NOWHERE:
        check_inputs_outside(recipe.output_dir, _inputs(recipe))
        drop_finished(recipe.output_dir)
        check_output(recipe.output_dir, recipe.overwrite)
    check_arguments(recipe.train, recipe.seed)
    check_natural(recipe)
    check_trackers(recipe.train.trackers, recipe.output_dir)


def _inputs(recipe: UnlearnRecipe | FinetuneRecipe) -> Iterator[tuple[str, str | None]]:
    """(key, path) of everything that a run reads."""
    yield "model.name", recipe.model.name
    yield "model.adapter", recipe.model.adapter
    yield "data_dir", recipe.data_dir
    if isinstance(recipe, FinetuneRecipe):
        yield from ((f"data[{index}].path", source.path) for index, source in enumerate(recipe.data))
        return
    yield "alternative.path", recipe.alternative.path
    yield "search", recipe.search
    for item in fields(recipe.data):
        source = getattr(recipe.data, item.name)
        if source is not None:
            yield f"data.{item.name}.path", source.path


def build_method(recipe: UnlearnRecipe) -> Method:
    """The method that a recipe names, with its hyper-parameters checked."""
    given = dict(recipe.method)
    name = given.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError("method.name is missing; give for example method: {name: npo}")
    cls = with_defaults(find_class("llm_forget.methods", name, "forget_loss"), Method)
    method = build(cls, given, f"method {name}")
    if recipe.adapter is None and method.finish is not None:
        raise RecipeError(f"method {name} needs an adapter; remove `adapter: null` from the recipe")
    return method


def build_retain(config: RetainConfig, method: Method) -> RetainTerm | None:
    """The retain term that a recipe names, or the method's default."""
    name = method.default_retain if config.name == "default" else config.name
    if name is None:
        return None
    cls = with_defaults(find_class("llm_forget.retain", name, "retain_loss"), RetainTerm)
    return build(cls, config.settings, f"retain term {name}")


def build_more(config: RetainConfig) -> tuple[FurtherTerm, ...]:
    """The further retain terms that a recipe lists, with their hyper-parameters checked.

    Raises:
        RecipeError: an entry has no name, is given twice, or has a bad weight or hyper-parameter.
    """
    found: list[FurtherTerm] = []
    for given in config.more:
        values = dict(given)
        name, weight = values.pop("name", None), values.pop("weight", 1.0)
        if not isinstance(name, str):
            raise RecipeError(
                "retain.more: each entry needs a name; give for example more: [{name: virtual_neighbours}]"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise RecipeError(f"retain.more: the weight of {name} is {weight!r}; give a number, 0 or more")
        label = Path(name).stem if name.endswith(".py") else name
        if label in {"retain", *(one.name for one in found)}:
            raise RecipeError(f"retain.more names {label} twice; give each term once, with one weight")
        cls = with_defaults(find_class("llm_forget.retain", name, "retain_loss"), RetainTerm)
        found.append(FurtherTerm(label, build(cls, values, f"retain term {name}"), float(weight)))
    return tuple(found)


def kept_in_loss(
    recipe: UnlearnRecipe, retain: RetainTerm | None, more: tuple[FurtherTerm, ...]
) -> tuple[RetainTerm | None, tuple[FurtherTerm, ...]]:
    """The retain terms that are a part of the loss: with the optimizer ``natural``, terms without weight only shape the steps."""
    if recipe.train.optimizer != NATURAL:
        return retain, more
    return retain if recipe.retain.weight else None, tuple(one for one in more if one.weight)


def planned_objective(recipe: UnlearnRecipe) -> Objective:
    """The objective of a settled recipe without its weights, for plans of memory and time."""
    method = build_method(recipe)
    retain, more = kept_in_loss(recipe, build_retain(recipe.retain, method), build_more(recipe.retain))
    return Objective(method, retain, more=more)


class WrapperRefused(RecipeError):
    """A wrapper cannot work in a run."""


def build_wrappers(recipe: UnlearnRecipe, method: Method, retain: bool) -> list[Wrapper]:
    """The wrappers that a recipe lists, each checked against the run.

    Raises:
        RecipeError: a wrapper is unknown or has a bad hyper-parameter.
        WrapperRefused: a wrapper cannot work in this run.
    """
    setting = Setting(
        retain=retain,
        towards=method.towards,
        quantized=recipe.model.quantization is not None,
        adapter=recipe.adapter is not None,
        sharded=is_sharded(),
    )
    found: list[Wrapper] = []
    for given in recipe.wrappers:
        values = dict(given)
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise RecipeError("wrappers: each entry needs a name; give for example wrappers: [{name: sam, rho: 0.01}]")
        wrapper: Wrapper = build(find_class("llm_forget.wrappers", name, "on_gradient"), values, f"wrapper {name}")
        reason = wrapper.refuses(setting)
        if reason is not None:
            raise WrapperRefused(f"wrapper {name} cannot be used in this run: {reason}")
        found.append(wrapper)
    return found


def chosen_layer(objective: Objective) -> int | None:
    """The block whose hidden states are read; None for the default.

    Raises:
        RecipeError: method and retain term name different blocks.
    """
    try:
        return objective.layer
    except ValueError as error:
        raise RecipeError(str(error)) from None


def trained_blocks(method: Method, model: nn.Module, layer: int | None) -> list[int] | None:
    """The blocks that a method trains; None if it trains all blocks that the recipe selects."""
    return None if method.trained_layers is None else method.trained_layers(_hidden_layer(model, layer))


def check_layer(adapter: AdapterConfig | None, objective: Objective, model: nn.Module) -> None:
    """Check that a loss reads hidden states that the adapter can change.

    Raises:
        RecipeError: ``adapter.top_share`` begins above the block that the method or the retain term reads, or the model has
            no such block.
    """
    if adapter is None or not objective.rows.hidden:
        return
    depth = config_depth(below_wrapper(model).config)
    blocks, layer = top_blocks(adapter, depth), _hidden_layer(model, objective.layer)
    if blocks is not None and layer < blocks.start:
        raise RecipeError(
            f"adapter.top_share is {adapter.top_share}, so block {blocks.start} is the lowest with an adapter, but the loss "
            f"reads the hidden states of block {layer}, which training cannot change; set layer to {blocks.start} or more, or "
            "increase top_share"
        )


def check_head(model: nn.Module) -> None:
    """Check before training that the run can write its adapter, which must leave the head as it is.

    Raises:
        RecipeError: the adapter changes the head.
    """
    head = output_head(model)
    if any("lora_" in name for name, _ in head.named_parameters()):
        raise RecipeError(
            "adapter.target_modules selects the language-model head, but servers disagree about an adapter on it; name linear "
            "layers of the blocks only"
        )


def _hidden_layer(model: nn.Module, layer: int | None) -> int:
    try:
        return hidden_layer(model, layer)
    except ValueError as error:
        raise RecipeError(f"method or retain term: {error}") from None


def make_trainable(
    model: Any,
    adapter: AdapterConfig | None,
    blocks: Collection[int] | None = None,
    *,
    compiled: bool,
    say: Callable[[str], None] = lambda _: None,
) -> Any:
    """Add a new adapter to the model, or select the weights to train.

    Args:
        model: the loaded model.
        adapter: the recipe's adapter section; None for full fine-tuning.
        blocks: train only these blocks; None for the blocks that the recipe selects.
        compiled: compile each block with ``torch.compile``.
        say: called with a sentence about layers that are not adapted, if there is one.
    """
    if adapter is not None:
        model = add_adapter(model, adapter, blocks, say=say)
    elif blocks is not None:
        train_only_blocks(model, blocks)
    if compiled:
        compile_blocks(model)
    return model
