"""Forget a batch of requests, and test that all earlier ones stay forgotten."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_forget.adapters.arithmetic import combine
from llm_forget.adapters.export import export_adapter
from llm_forget.adapters.lora import BaseRecord, load_adapter
from llm_forget.certificates.shred import PARTS
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.data.encode import encode_all
from llm_forget.data.examples import DataSource, Example
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.equivalence import MARGIN
from llm_forget.evaluation.intervals import mean_interval
from llm_forget.model.adapted import merge_adapter
from llm_forget.model.limits import padding_id
from llm_forget.model.load import load_model, locate_model
from llm_forget.model.measure import answer_logps
from llm_forget.requests import batches
from llm_forget.requests.ledger import Batch, Ledger, Measured
from llm_forget.runs import load_run
from llm_forget.train.run_folder import write_result
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.digests import json_digest, weights_digest
from llm_forget.utils.files import folder_digest, new_folder
from llm_forget.utils.lock import locked
from llm_forget.utils.safe_json import read_json

_IN_MEMORY = DataSource("(in memory)")
_KNOWN = 0.05  # mean answer probability below which rows do not count as known

Say = Callable[[str], None]


@dataclass(frozen=True)
class Workshop:
    """Where and how batches are forgotten.

    Attributes:
        ledger: the ledger.
        recipe: the recipe of every batch; its forget rows and output folder are replaced.
        folder: the folder of the runs, one for each batch.
        say: gets lines about the progress.
        console: a console for the progress of training; standard error by default.
    """

    ledger: Ledger
    recipe: UnlearnRecipe
    folder: Path
    say: Say = lambda _: None
    console: Console | None = None

    @property
    def base(self) -> Path:
        """The folder of the base.

        Raises:
            RecipeError: the recipe names no folder, or an adapter.
        """
        if self.recipe.model.adapter is not None:
            raise RecipeError(
                "model.adapter is set; batches start from the base, and the ledger adds the adapters before"
            )
        base = Path(locate_model(self.recipe.model.name))
        if not base.is_dir():
            raise RecipeError(
                f"model.name: {self.recipe.model.name} is no folder here; download the base and give its folder"
            )
        return base

    def adapter(self, batch: str) -> Path:
        """The adapter that is served after a batch."""
        return self.folder / batch / "adapter"


def forget_batch(shop: Workshop, name: str, *, keep: bool = False) -> Batch:
    """Forget a batch, or go on where this was interrupted, and test its own and all earlier requests.

    Only one batch is forgotten at a time. A step that is complete is not repeated.

    Args:
        shop: ledger, recipe and folder.
        name: the batch.
        keep: serve its adapter even if an earlier request came back.

    Returns:
        The batch, done or rejected.

    Raises:
        UserError: the recipe or the rows cannot be used, or another process forgets a batch of this folder.
    """
    base = shop.base
    shop.folder.mkdir(parents=True, exist_ok=True)
    with locked(shop.folder / "batches", "--folder"):
        found = batches.claim(shop.ledger, name)
        started = time.monotonic()
        earlier = batches.earlier(shop.ledger, name)
        rows = {one: shop.ledger.rows(one) for one in (*found.requests, *earlier)}
        reached = _forgotten(shop, found, base, rows)
        tests = _tests(shop, found, base, rows, reached=reached)
        digest = folder_digest(shop.adapter(name)) or ""
        cost = time.monotonic() - started
        return batches.finish(shop.ledger, name, tests, digest, cost, keep=keep)


def retest(shop: Workshop) -> list[Measured]:
    """Measure all requests that must stay forgotten with the adapter that is served now, and record it.

    Raises:
        UserError: no batch is done, the adapter is not the recorded one, or rows are not here.
    """
    served = batches.current(shop.ledger)
    if served is None:
        raise UserError("no batch is done, so there is nothing to test; `llm-forget requests forget` forgets one")
    if folder_digest(shop.adapter(served.id)) != served.adapter:
        raise UserError(f"{shop.adapter(served.id)} is not the adapter that was recorded for {served.id}")
    waiting = shop.ledger.requests("forgotten", "answered", "returned")
    ids = [one.id for one in waiting if batches.forgotten_at(shop.ledger, one.id) is not None]
    rows = {one: shop.ledger.rows(one) for one in ids}
    measured = _probabilities(shop, shop.base, shop.adapter(served.id), rows)
    tests = [_later(shop.ledger, one, measured[one]) for one in ids]
    batches.retested(shop.ledger, served.id, tests)
    return tests


def _forgotten(shop: Workshop, found: Batch, base: Path, rows: dict[str, list[Example]]) -> bool | None:
    """Train the batch's adapter, and compose it with the one before if it is not joint. Whether it reached its target."""
    final = shop.folder / found.id
    builds_on = found.previous if found.how != "joint" else None
    own = final if builds_on is None else final.with_name(f"{final.name}.{PARTS}") / "run"
    wanted = list(rows) if found.how == "joint" else list(found.requests)
    forget = [row for one in wanted for row in rows[one]]
    changes: dict[str, Any] = {"output_dir": str(own), "resume": True, "overwrite": False}
    if found.how == "sequential" and builds_on is not None:
        changes["model"] = replace(shop.recipe.model, adapter=str(shop.adapter(builds_on)))
        # without its adapter, the model knows the earlier rows, so it is no model that never saw rows
        changes["base"] = None if shop.recipe.base == "auto" else shop.recipe.base
        changes["stop"] = replace(shop.recipe.stop, utility_floor=_floor_from_base(shop, builds_on))
    recipe = replace(shop.recipe, data=replace(shop.recipe.data, forget=_IN_MEMORY), **changes)
    if not (final / "result.json").is_file():
        if not (own / "result.json").is_file():
            shop.say(f"{found.id}: {len(found.requests)} requests, {len(forget)} rows, {found.how}")
            own.parent.mkdir(parents=True, exist_ok=True)
            unlearn(recipe, shop.console, in_memory={"forget": forget})
        if builds_on is not None:
            _compose(own, shop.adapter(builds_on), base, final, found.how)
    result = read_json(final / "result.json")
    if (result.get("data_digests") or {}).get("forget") != json_digest(sorted(row.id for row in forget)):
        raise UserError(f"{final} holds a run on other rows than those of {found.id}; move it away")
    return None if result.get("reached") is None else bool(result["reached"])


def _floor_from_base(shop: Workshop, previous: str) -> float:
    """The utility floor of a sequential batch, so that it is counted from the base: else each batch could lose as much again."""
    floor = shop.recipe.stop.utility_floor
    last = read_json(shop.folder / previous / "result.json")
    name: str | None = previous
    while name is not None:
        found = read_json(shop.folder / name / "result.json")
        how = (found.get("composed") or {}).get("how", "joint")
        if how == "stacked":
            return floor  # what the sum keeps was not measured
        if how == "joint":  # trained from the base
            base, now = (one.get("retain") for one in (found["before"], last["after"]))
            return floor if not base or not now else min(1.0, floor * base / now)
        name = batches.batch(shop.ledger, name).previous
    return floor


def _compose(own: Path, previous: Path, base: Path, final: Path, how: str) -> None:
    """Write the run folder of a batch whose adapter is the sum of the one before and its own."""
    load_run(own)  # checks that it is complete
    digest = weights_digest(base)
    before, added = load_adapter(previous), load_adapter(own / "adapter")
    total = combine([before, added], [1.0, 1.0], assume_same_base=True)
    result = read_json(own / "result.json")
    parts = {"how": how, "before": folder_digest(previous), "added": folder_digest(own / "adapter")}
    with new_folder(final, same_if_present=True) as folder:
        for file in own.iterdir():
            if file.is_file() and file.name != "result.json":
                shutil.copyfile(file, folder / file.name)
        record = BaseRecord(before.base.name or base.name, before.base.revision, digest)
        total = replace(total, base=record)
        export_adapter(
            total, folder / "adapter", max_rank=total.rank, base=record, method=f"{how}: sum of two adapters"
        )
        write_result(folder, {**result, "base_digest": digest, "composed": parts})


def _tests(
    shop: Workshop, found: Batch, base: Path, rows: dict[str, list[Example]], *, reached: bool | None
) -> list[Measured]:
    before = _probabilities(shop, base, None, {one: rows[one] for one in found.requests})
    after = _probabilities(shop, base, shop.adapter(found.id), rows)
    tests = []
    for one in rows:
        if one in found.requests:
            tests.append(_first(one, before[one], after[one], reached=reached))
        else:
            tests.append(_later(shop.ledger, one, after[one]))
    return tests


def _first(request: str, before: Sequence[float], after: Sequence[float], *, reached: bool | None) -> Measured:
    """The test of a request right after its own batch."""
    known, value = _mean(before), _mean(after)
    if known < _KNOWN:
        verdict = "not known before"
    elif reached is False or value > (1 - MARGIN) * known:
        verdict = "not reached"
    else:
        verdict = "forgotten"
    return Measured(request, known, value, *_ends(after), verdict)


def _later(ledger: Ledger, request: str, after: Sequence[float]) -> Measured:
    """A later test: a request came back if it regained a fifth of what its own batch had taken away."""
    then, value = batches.forgotten_at(ledger, request), _mean(after)
    if then is None:
        raise UserError(f"request {request} was never forgotten by an adapter that was served; put it into a batch")
    taken = then.before - then.value
    came_back = value >= _KNOWN and (taken <= 0 or (value - then.value) / taken >= MARGIN)
    return Measured(request, then.before, value, *_ends(after), "returned" if came_back else "stays")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean; from 0 to 1 for a single row."""
    return mean_interval(values, bounds=(0, 1)) if len(values) > 1 else (0.0, 1.0)


def _probabilities(
    shop: Workshop, base: Path, adapter: Path | None, rows: dict[str, list[Example]]
) -> dict[str, list[float]]:
    """Request → probability of each of its rows' answers, the geometric mean over tokens."""
    config: ModelConfig = replace(shop.recipe.model, name=str(base), adapter=None)
    model, tokenizer = load_model(config)
    if adapter is not None:
        merge_adapter(model, load_adapter(adapter))
    pad = padding_id(tokenizer, model)
    found = {}
    for one, examples in rows.items():
        encoded = encode_all(tokenizer, examples, shop.recipe.encoding, role="forget")[0]
        found[one] = [float(value) for value in answer_logps(model, encoded, pad)[1]]
    return found
