"""A search: its settings in a file that every worker reads, and the trials of a model's own order."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_forget.data.readers import locate
from llm_forget.errors import RecipeError, UserError
from llm_forget.forgetting.found import Found, look
from llm_forget.forgetting.measuring import model_at
from llm_forget.forgetting.order import SETS, Order
from llm_forget.forgetting.work import NEIGHBOUR_FLOOR, work_for
from llm_forget.model.limits import padding_id
from llm_forget.model.load import load_model
from llm_forget.train.origin import has_base
from llm_forget.train.shared import Shared, share
from llm_forget.trials.child import Task, main
from llm_forget.trials.slots import Result, Slots
from llm_forget.trials.space import WRAPPERS, Space, reads_names, usable_methods
from llm_forget.trials.worker import Ask, InProcess
from llm_forget.trials.yardstick import Yardstick, make_yardstick, scored
from llm_forget.utils.cores import cores
from llm_forget.utils.files import write_json
from llm_forget.utils.safe_json import NotPlainJson, read_json

SETTINGS = "search.json"
AIM = "aim.safetensors"  # what aims an adapter is the same for all trials; the file goes with the last one


@dataclass(frozen=True)
class Search:
    """The settings of a search.

    Attributes:
        order: the model, the rows and the rest.
        trials: number of trials.
        methods: names; None for all that can be used.
        wrappers: names; "none" for none.
        seed: of everything random.
    """

    order: Order
    trials: int = 40
    methods: tuple[str, ...] | None = None
    wrappers: tuple[str, ...] = WRAPPERS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise RecipeError(f"--trials is {self.trials}; give 1 or more")

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return Path(self.order.to) if self.order.to else self.order.folder.with_name(f"{self.order.folder.name}-search")

    def slots(self, url: str | None, worker: int | None = None) -> Slots:
        """Its trials."""
        return Slots(self.folder, url=url, seed=self.seed, worker=worker, budget=self.trials)

    def write(self) -> None:
        """Note the settings in the folder, for workers, with absolute paths.

        Raises:
            UserError: the folder holds another search; only the number of trials may change.
        """
        file = self.folder / SETTINGS
        if file.is_file():
            before = read_search(self.folder)
            if replace(before, trials=self.trials) != replace(self, order=_absolute(self.order, self.folder)):
                raise UserError(
                    f"{self.folder} holds another search; give another folder with --to, or only --to {self.folder} to go on"
                )
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "order"}
        write_json(file, {**values, "order": asdict(_absolute(self.order, self.folder))})


def _absolute(order: Order, folder: Path) -> Order:
    """The order with absolute paths where they name something here."""
    paths = {name: getattr(order, name) for name in ("model", "base", "oracle")}
    changes = {name: str(Path(path).resolve()) for name, path in paths.items() if path and Path(path).exists()}
    for name in SETS:
        path = None if getattr(order, name) is None else locate(getattr(order, name))
        if path is not None:
            changes[name] = str(path.resolve())
    return replace(order, **changes, to=str(folder.resolve()), changes=dict(order.changes))  # type: ignore[arg-type]


def read_search(folder: Path) -> Search:
    """The settings of the search in a folder.

    Raises:
        UserError: there is none.
    """
    try:
        values = read_json(folder / SETTINGS)
        methods = None if values["methods"] is None else tuple(values["methods"])
        order, trials, seed = Order(**values["order"]), int(values["trials"]), int(values["seed"])
        return Search(order, trials, methods, tuple(values["wrappers"]), seed)
    except (NotPlainJson, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, NotPlainJson) else "is damaged"
        raise UserError(
            f"{folder / SETTINGS} {reason}; give --model and --forget to begin a search, or the folder of one"
        ) from None


@dataclass
class Trials:
    """Runs the trials of a search.

    Attributes:
        search: the settings.
        threads: of each trial; 0 for the usual number.
        say: called with notes.
    """

    search: Search
    threads: int = 0
    say: Callable[[str], None] = field(default=lambda _: None)

    @cached_property
    def found(self) -> Found:
        """What the order names."""
        return look(self.search.order)

    @cached_property
    def space(self) -> Space:
        """What may be tried."""
        start = work_for(self.found).recipe
        names = self.found.named > 0 and not any(row.part for row in self.found.sets.forget)
        methods = usable_methods(start, base=has_base(start), names=names, wanted=self.search.methods)
        return Space(start, methods, self.search.wrappers)

    @cached_property
    def common(self) -> tuple[Shared, Yardstick, int]:
        """What all trials have in common: rows and teachers, the yardstick and the padding token."""
        space = self.space
        pads: list[int] = []
        yardsticks: list[Yardstick] = []
        oracle = self._oracle()

        def measure(model: Any, tokenizer: Any, shared: Shared) -> None:
            pads.append(padding_id(tokenizer, model))
            floor = space.start.stop.neighbour_floor
            floors = {
                "retain": space.start.stop.utility_floor,
                "neighbours": NEIGHBOUR_FLOOR if floor is None else floor,
            }
            yardsticks.append(
                make_yardstick(model, shared, pads[0], oracle=oracle, neighbours=self.found.neighbours, floors=floors)
            )

        aim = self.search.folder / AIM if self.search.folder.is_dir() else None
        shared = share(space.start, swapped=reads_names(space.methods), aim=aim, also=measure, say=self.say)
        return shared, yardsticks[0], pads[0]

    def _oracle(self) -> tuple[list[float], list[float]] | None:
        """The oracle's log-prob and entropy of each forget row."""
        place = self.search.order.oracle
        if place is None:
            return None
        model, tokenizer = load_model(model_at(place, self.space.start.model))
        found = scored(model, self.found.sets.forget, padding_id(tokenizer, model))
        del model
        gc.collect()
        return found

    def draw(self, trial: Any) -> object:
        """Suggest every parameter of a trial."""
        return self.space.draw(trial)

    def key(self, params: Mapping[str, Any]) -> object:
        """The recipe of a trial, or the parameters if there is none."""
        try:
            return self.space.recipe(params, "")
        except UserError:
            return dict(params)

    @cached_property
    def _process(self) -> InProcess:
        return InProcess(main, ("llm_forget.trials.child",))

    def run(self, params: Mapping[str, Any], place: Path, ask: Ask) -> Result | None:
        """Run a trial in a process of its own."""
        shared, yardstick, pad = self.common
        try:
            recipe = self.space.recipe(params, str(place))
        except UserError as error:
            return Result(failed=str(error))
        step = recipe.train.batch_size * recipe.train.gradient_accumulation
        steps = math.ceil(recipe.train.epochs * len(shared.sets.forget) / step)
        place.parent.mkdir(parents=True, exist_ok=True)
        log = place.with_name(f"{place.name}.log")
        return self._process(Task(recipe, shared, yardstick, steps, pad, self.threads, log), ask)


def usual_threads(workers: int) -> int:
    """Threads of each of several workers on this machine; 0 for one worker."""
    return 0 if workers < 2 else max(1, cores() // workers)
