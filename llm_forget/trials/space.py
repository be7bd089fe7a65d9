"""The settings that a search tries, and the recipe of each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llm_forget.config import AdapterConfig, RetainConfig, TrainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.train.build import WrapperRefused, build_method, build_wrappers, planned_objective
from llm_forget.train.default import SHAPED_STEPS
from llm_forget.train.default import STEPS as PLAIN_STEPS
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.natural import RATE
from llm_forget.utils.plugins import find_class, names_in, with_defaults

if TYPE_CHECKING:
    from optuna.trial import Trial

WRAPPERS = ("none", "sam", "gru")
RANKS = (4, 8, 16, 32, 64, 128)
SHARES = (1.0, 0.5, 0.25)  # of the blocks, from the top
STEPS = (0.5, 1.0, 2.0)  # as multiples of the default's without rows to keep
TOLERANCES = (1.0, 0.5)  # of row targets, as multiples of the default's
RATES = (0.25, 4.0)  # likewise, the lowest and the highest
WEIGHTS = (0.5, 16.0)  # of the retain term, and of virtual neighbours or general questions
_USUAL_RATE = 1e-3  # of an adapter, where a recipe has none
_MADE = ("virtual_neighbours", "general_questions", "mined_neighbours")


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        start: the default's recipe, which is the first trial.
        methods: names.
        wrappers: names; "none" for none.
    """

    start: UnlearnRecipe
    methods: tuple[str, ...]
    wrappers: tuple[str, ...] = WRAPPERS

    @property
    def _more_steps(self) -> float:
        """The default's steps, as a multiple of those that it takes without rows to keep."""
        return SHAPED_STEPS / PLAIN_STEPS if self.start.train.optimizer == NATURAL else 1.0

    @property
    def _by_row(self) -> bool:
        return self.start.stop.forget_target == "rows"

    @property
    def first(self) -> dict[str, Any]:
        """The parameters of the default."""
        recipe = self.start
        weights = {one["name"]: float(one.get("weight", 1.0)) for one in recipe.retain.more}
        made = max(weights.values(), default=WEIGHTS[0])
        found: dict[str, Any] = {
            "method": recipe.method["name"],
            "wrapper": "none",
            "retain_weight": _inside(recipe.retain.weight, WEIGHTS),
            "made_weight": _inside(made, WEIGHTS),
            "rank": recipe.adapter.rank if recipe.adapter is not None else RANKS[-1],
            "blocks": 1.0,
            "steps": self._more_steps,
            "rate": 1.0,
        }
        if self._by_row:
            found["tolerance"] = 1.0
        if recipe.data.retain is not None:
            found["inputs"] = recipe.adapter.inputs if recipe.adapter is not None else "all"
        return found

    def draw(self, trial: Trial) -> dict[str, Any]:
        """Suggest every parameter."""
        trial.suggest_categorical("method", self.methods)
        trial.suggest_categorical("wrapper", self.wrappers)
        trial.suggest_float("retain_weight", *WEIGHTS, log=True)
        trial.suggest_float("made_weight", *WEIGHTS, log=True)
        trial.suggest_categorical("rank", RANKS)
        trial.suggest_categorical("blocks", SHARES)
        trial.suggest_categorical("steps", STEPS)
        trial.suggest_float("rate", *RATES, log=True)
        if self._by_row:
            trial.suggest_categorical("tolerance", TOLERANCES)
        if self.start.data.retain is not None:
            trial.suggest_categorical("inputs", ("all", "forget"))
        return dict(trial.params)

    def recipe(self, drawn: Mapping[str, Any], output_dir: str) -> UnlearnRecipe:
        """The recipe of a trial.

        Args:
            drawn: the parameters.
            output_dir: its run folder.
        """
        start = self.start
        method = _method(str(drawn["method"]))
        own = start.method["name"] == drawn["method"]
        rank = int(drawn["rank"])
        # a method that trains the adapter in its own way sets A and the blocks itself
        aimed = "all" if method.finish is not None else str(drawn.get("inputs", "all"))
        # natural needs an aimed adapter, and its rows to keep shape the steps without a weight
        shaped = start.train.optimizer == NATURAL and aimed == "forget"
        optimizer = start.train.optimizer if shaped or start.train.optimizer != NATURAL else TrainConfig().optimizer
        # with rows to keep in the loss a step takes three times as long, so these runs have half the steps
        share = float(drawn["steps"]) / self._more_steps * (1.0 if shaped or start.train.optimizer != NATURAL else 0.5)
        rate, times, usual = start.train.learning_rate, float(drawn["rate"]), RATE if shaped else _USUAL_RATE
        train = replace(
            start.train,
            optimizer=optimizer,
            epochs=max(1, round(start.train.epochs * share)),
            learning_rate=rate if times == 1 else (usual if rate is None else rate) * times,
        )
        # natural adapts its steps at each check; a longer run of another optimizer gets no more checks
        spacing = 1 if shaped else max(1, round(share * self._more_steps))
        near = start.stop.tolerance * float(drawn.get("tolerance", 1.0))
        stop = replace(start.stop, every=start.stop.every * spacing, tolerance=near)
        blocks = 1.0 if method.trained_layers is not None else float(drawn["blocks"])
        adapter = replace(
            start.adapter or AdapterConfig(), rank=rank, alpha=rank, inputs=aimed, top_share=blocks  # type: ignore[arg-type]
        )  # fmt: skip
        recipe = replace(
            start,
            method=dict(start.method) if own else {"name": str(drawn["method"])},
            retain=start.retain if shaped else _retain(start.retain, drawn),
            adapter=adapter,
            train=train,
            stop=stop,
            output_dir=output_dir,
            resume=True,
        )
        return _wrapped(recipe, str(drawn["wrapper"]))


def _wrapped(recipe: UnlearnRecipe, name: str) -> UnlearnRecipe:
    """The recipe with a wrapper, or without it if the wrapper cannot be used there."""
    if name == "none":
        return recipe
    wrapped, objective = replace(recipe, wrappers=[{"name": name}]), planned_objective(recipe)
    try:
        build_wrappers(wrapped, build_method(recipe), objective.retain is not None)
    except WrapperRefused:
        return recipe
    return wrapped


def _retain(start: RetainConfig, drawn: Mapping[str, Any]) -> RetainConfig:
    more = [{**one, "weight": float(drawn["made_weight"])} if one["name"] in _MADE else one for one in start.more]
    return replace(start, weight=float(drawn["retain_weight"]), more=more)


def usable_methods(
    start: UnlearnRecipe, *, base: bool, names: bool = True, wanted: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The methods whose needs are at hand.

    Left out by default are methods whose loss has no lower bound, and those that train on another answer, which the rows or the
    model would have to give.

    Args:
        start: the default's recipe; its method comes first.
        base: whether the model before it learned the rows is at hand.
        names: whether the forget rows are about names, and whole.
        wanted: names; None for all that can be used.

    Raises:
        RecipeError: a name is unknown, or needs what is not at hand.
    """
    own = str(start.method["name"])
    known = names_in("llm_forget.methods")
    asked = list(dict.fromkeys([own, *known])) if wanted is None else list(dict.fromkeys([*wanted]))
    found = []
    for name in asked:
        needs = _method(name).needs
        if (needs.base_top or needs.base_weights) and not base:
            if wanted is not None:
                raise RecipeError(f"--methods: {name} needs the model before it learned the rows; give --base")
            continue
        if needs.swapped_top and not names:
            if wanted is not None:
                raise RecipeError(
                    f"--methods: {name} needs whole rows about names, and none was found in the forget rows"
                )
            continue
        if wanted is None and name != own and (needs.any_alternative or not _method(name).bounded):
            continue
        found.append(name)
    return tuple(found)


def reads_names(methods: Sequence[str]) -> bool:
    """Whether one of the methods has a teacher that knows the forget rows with another name."""
    return any(_method(name).needs.swapped_top for name in methods)


def _method(name: str) -> Method:
    found: Method = with_defaults(find_class("llm_forget.methods", name, "forget_loss"), Method)()
    return found


def _inside(value: float, ends: tuple[float, float]) -> float:
    return min(max(value if math.isfinite(value) else ends[1], ends[0]), ends[1])
