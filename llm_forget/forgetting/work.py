"""What will be done for an order: a recipe that fits the machine, its memory and time, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from llm_forget.config import RetainConfig, TrainConfig, UnlearnRecipe
from llm_forget.errors import RecipeError
from llm_forget.forgetting.found import Found
from llm_forget.memory.machine import speed
from llm_forget.memory.plan import GB, Plan, plan
from llm_forget.train.build import planned_objective
from llm_forget.train.default import USUAL_STEPS, scaled, settled
from llm_forget.train.natural import NAME as NATURAL
from llm_forget.train.origin import has_base

_ROOM = 0.9  # share of the free memory that a plan may take
_EFFICIENCY = 0.5  # of a training step, as a share of the speed of a matrix product
GENERAL = "general_questions"
NEIGHBOUR_FLOOR = 0.9  # of the rows that the model supplies, where there are no rows to keep
MOST_MEASURED = 100  # rows of each set to keep that are measured


@dataclass(frozen=True)
class Work:
    """The work for an order.

    Attributes:
        found: what there is.
        recipe: every setting of the run.
        memory: the peak of a training step.
        seconds: a rough estimate of the time to train and measure, without the audit.
        changed: what was changed to fit the memory; empty if nothing.
    """

    found: Found
    recipe: UnlearnRecipe
    memory: Plan
    seconds: float
    changed: str

    @property
    def steps(self) -> int:
        """Optimizer steps at most."""
        train = self.recipe.train
        return train.epochs * math.ceil(len(self.found.sets.forget) / (train.batch_size * train.gradient_accumulation))

    def missing(self) -> list[str]:
        """What was not given, and what that costs."""
        order, without = self.found.order, self.found.without
        lines = []
        if order.retain is None:
            lines.append(
                "no --retain: the model's own answers to general questions and to forget questions about other names stand in; "
                "what is close to the forget rows is protected less"
            )
        if not has_base(self.recipe):
            goal = "the holdout rows say how unlikely an unseen answer is" if order.holdout else "0.1 counts as unseen"
            lines.append(f"no --base (the model before it learned the rows): a weaker method, and {goal}")
        if order.holdout is None:
            lines.append("no --holdout (similar rows that nobody learned): no membership attack can be measured")
        if order.oracle is None:
            lines.append("no --oracle (a model that never saw the rows): nothing can show that it is as if never seen")
        if order.neighbours is None:
            lines.append("no --neighbours (rows about similar people): harm next to the forget rows is not measured")
        if not self.found.named:
            lines.append("no name found in the forget rows: no virtual neighbours; a column `subject` would name them")
        if without:
            lines.append(f"not installed: {' and '.join(without.values())} (pip install 'llm-forget[eval]')")
        return lines


def work_for(found: Found) -> Work:
    """Choose every setting of a run, within the memory that is free.

    Raises:
        RecipeError: not even the smallest batch fits.
    """
    chosen = chosen_recipe(found)
    fitted, memory, changed = _fitted(chosen, found)
    return Work(found, fitted, memory, _seconds(fitted, found), changed)


def chosen_recipe(found: Found) -> UnlearnRecipe:
    """The default's recipe for what there is, with rows from the model itself where there are none to keep."""
    given = found.recipe
    recipe = settled(given, base=has_base(given))
    recipe = scaled(recipe, given, rows=len(found.sets.forget), width=found.width)
    if not given.method and given.retain == RetainConfig():
        more = [one for one in recipe.retain.more if found.named or one["name"] != "virtual_neighbours"]
        if given.data.retain is None:
            more.append({"name": GENERAL, "weight": recipe.retain.weight})
            if recipe.stop.neighbour_floor is None and given.stop.neighbour_floor is None:
                recipe = replace(recipe, stop=replace(recipe.stop, neighbour_floor=NEIGHBOUR_FLOOR))
        recipe = replace(recipe, retain=replace(recipe.retain, more=more))
    return recipe


def _fitted(recipe: UnlearnRecipe, found: Found) -> tuple[UnlearnRecipe, Plan, str]:
    """The recipe with the largest micro-batch that fits, then with gradient checkpointing; the step stays the same."""
    room = found.machine.free * _ROOM
    sets = found.sets
    rows = sum(map(len, (sets.forget, sets.retain, sets.validation, sets.holdout)))

    def planned(train: TrainConfig) -> tuple[UnlearnRecipe, Plan]:
        one = replace(recipe, train=train)
        how = {"tokens": found.longest, "model_config": found.config, "data_rows": rows}
        return one, plan(one, on_card=found.machine.on_card, **how)

    usual, needed = planned(recipe.train)
    if needed.needed <= room:
        return usual, needed, ""
    lighter = list(_lighter(recipe.train))
    lightest, least = planned(lighter[-1][0])
    if least.needed > room:
        four_bits = "; --model.quantization nf4" if found.machine.on_card and recipe.model.quantization is None else ""
        free = "free on this machine" if found.order.memory is None else "free on this machine or allowed by --memory"
        raise RecipeError(
            f"{found.order.model} needs {_gb(least.needed)} of memory even with one row at a time, and "
            f"{_gb(found.machine.free)} are {free} ({found.machine.name}): close other programs, take a larger "
            f"machine or a smaller model, or try --adapter.top_share 0.25{four_bits}"
        )
    for train, changed in lighter[:-1]:
        one, needed = planned(train)
        if needed.needed <= room:
            return one, needed, changed
    return lightest, least, lighter[-1][1]


def _lighter(train: TrainConfig) -> Iterator[tuple[TrainConfig, str]]:
    """Smaller micro-batches of the same step, then the same with checkpointing; each needs less memory and more time."""
    step = train.batch_size * train.gradient_accumulation
    sizes = [size for size in (train.batch_size // 2, train.batch_size // 4, 1) if 0 < size < train.batch_size] or [1]
    for checkpointing in dict.fromkeys((train.gradient_checkpointing, True)):
        for size in dict.fromkeys(sizes):
            changed = f"micro-batches of {size}" + (" and gradient checkpointing" if checkpointing else "")
            accumulation = math.ceil(step / size)
            yield (
                replace(
                    train, batch_size=size, gradient_accumulation=accumulation, gradient_checkpointing=checkpointing
                ),
                changed,
            )


def _seconds(recipe: UnlearnRecipe, found: Found) -> float:
    """Time to train and measure from the number of weights and tokens, and the speed of a matrix product here."""
    rows = planned_objective(recipe).rows.groups
    train, sets = recipe.train, found.sets
    step = train.batch_size * train.gradient_accumulation
    pairs = train.epochs * len(sets.forget)
    if train.optimizer == NATURAL:
        pairs = min(pairs, USUAL_STEPS * step)
    trained: float = pairs * sum(4 + 2 * bool(group.reference) for group in rows)
    if train.gradient_checkpointing:
        trained *= 1.3
    checks = pairs / step / recipe.stop.every * 2 * (len(sets.forget[: recipe.stop.rows]) + len(sets.validation))
    models = 2 + (found.order.oracle is not None)
    measured = (
        len(sets.forget)
        + len(sets.holdout)
        + sum(min(len(one), MOST_MEASURED) for one in (sets.retain, found.neighbours))
    )
    scored: float = (
        models * measured * 2 * 4
    )  # answers are scored and written, which is about three times the work of scoring
    if "lm_eval" not in found.without:
        scored += models * 336 * 4 * 2 * 0.5
    operations = found.tokens * found.weights * (trained + checks + scored)
    return 20.0 + operations / (_EFFICIENCY * speed(found.machine, found.dtype))


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.0f} MB"


def told(work: Work) -> list[str]:
    """A few lines: what was found, what will be done, and what is missing."""
    found, recipe = work.found, work.recipe
    sets, order = found.sets, found.order
    kind = (getattr(found.config, "architectures", None) or [found.config.model_type])[0]
    longest = max(len(row.input_ids) for row in sets.forget)
    lines = [
        f"model       {order.model}: {kind}, {_count(found.weights)} weights, {str(found.dtype).removeprefix('torch.')}",
        f"forget      {len(sets.forget)} rows, up to {longest} tokens; a name in {found.named}: trained on and measured",
    ]
    if sets.retain:
        lines.append(f"retain      {len(sets.retain)} rows: trained on; {len(sets.validation)} of them for the floor")
    if found.neighbours:
        lines.append(f"neighbours  {len(found.neighbours)} rows: measured only")
    if order.holdout:
        lines.append("holdout     never trained on; how an unseen answer looks, and for the membership attack")
    lines += [f"missing     {line}" for line in work.missing()]
    lines += [f"note        {line}" for line in sets.warnings]
    retain = [one for one in (recipe.retain.name, *(str(one["name"]) for one in recipe.retain.more)) if one]
    goal = recipe.stop.forget_target
    lines.append(
        f"method      {recipe.method['name']}, keeping by {', '.join(retain) or 'nothing'}; at most {work.steps} steps, until "
        + ("each row is as likely as unseen" if goal == "rows" else "answers are as unlikely as unseen ones")
    )
    changed = f", with {work.changed} to fit" if work.changed else ""
    lines.append(
        f"device      {found.machine.name}: {_gb(work.memory.needed)} of {_gb(found.machine.free)} free memory{changed}"
    )
    lines.append(f"time        roughly {_time(work.seconds)} to train and measure; the audit is about as long again")
    lines.append(f"writes      {order.folder}")
    return lines


def _count(number: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
