"""Measure a random slice of a certified run again, and compare every score with the one that was certified."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from llm_forget.certificates.contents import read_evidence
from llm_forget.certificates.verify import Check
from llm_forget.config import ModelConfig
from llm_forget.data.examples import Example
from llm_forget.errors import UserError
from llm_forget.evaluation.results import StoredResults
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import read_set, unique_ids
from llm_forget.evaluation.suite import LoadedSuite, load_suite
from llm_forget.model.load import load_model
from llm_forget.utils.build import build

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Slice:
    """What to measure again.

    Attributes:
        share: share of the rows of each set, above 0 and at most 1; at least one row of each.
        seed: chooses the rows.
        suite: file or name of the suite; None for the name that the results state.
        data_dir: folder with the suite's data; None for the paths in the suite.
        dtype: dtype of the evaluation.
    """

    share: float
    seed: int
    suite: str | None = None
    data_dir: str | None = None
    dtype: str = "auto"


def replay(folder: Path, base: Path, wanted: Slice) -> list[Check]:
    """Measure a slice of every set again.

    Args:
        folder: the run folder, whose files were checked.
        base: the base of its adapter.
        wanted: the slice.

    Returns:
        One check per suite.

    Raises:
        UserError: the suite or its data cannot be read.
    """
    found = read_evidence(folder)
    checks = []
    for name, stored in found.suites.items():
        suite = _suite(stored, wanted, found.run.recipe)
        rows = {part: _slice(part, suite, stored, wanted) for part in suite.sets}
        rows = {part: some for part, some in rows.items() if some}
        if not rows:
            raise UserError(f"none of the rows that {name} measured is here; give the folder with its data: --data-dir")
        checks.append(_compared(name, stored, _measured(suite, rows, folder, base, wanted.dtype), rows))
    return checks


def _suite(stored: StoredResults, wanted: Slice, recipe: Mapping[str, Any]) -> LoadedSuite:
    """The suite with the settings that the results state, and nothing but the sets."""
    settings = stored.raw["settings"]
    changes: dict[str, Any] = {
        key: settings[key] for key in ("encoding", "generation", "batch_tokens", "seed") if key in settings
    }
    changes |= {"perplexity": None, "capability": None, "benchmarks": None, "attacks": None, "aggregates": []}
    if "generation" in changes:
        changes["generation"] = {**changes["generation"], "sampling": None}
    if wanted.data_dir is not None:
        changes["data_dir"] = wanted.data_dir
    suite = load_suite(wanted.suite or stored.suite, {key: yaml.safe_dump(value) for key, value in changes.items()})
    sets = {}
    for name, one in suite.sets.items():
        if name in stored.raw["sets"]:
            limits = (settings.get("sets") or {}).get(name) or {}
            sets[name] = replace(one, **{key: limits[key] for key in ("stride", "limit") if key in limits})
    return replace(suite, sets=sets)


def _slice(name: str, suite: LoadedSuite, stored: StoredResults, wanted: Slice) -> list[Example]:
    examples = read_set(name, suite.sets[name])
    columns = stored.columns()
    known = {one for one, part in zip(columns["id"], columns["set"], strict=True) if part == name}
    # a repeated row has a second id that it would not have alone
    usable = [one for one, full in zip(examples, unique_ids([e.id for e in examples]), strict=True) if full == one.id]
    usable = [one for one in usable if one.id in known]
    count = min(len(usable), max(1, math.ceil(wanted.share * len(usable))))
    return random.Random(f"{wanted.seed} {name}").sample(usable, count)


def _measured(
    suite: LoadedSuite, rows: Mapping[str, Sequence[Example]], folder: Path, base: Path, dtype: str
) -> dict[str, Any]:
    adapter = folder / "adapter"
    model = {"name": str(base), "adapter": str(adapter)} if adapter.is_dir() else {"name": str(folder / "model")}
    loaded, tokenizer = load_model(build(ModelConfig, {**model, "dtype": dtype}, "--dtype"))
    sets = {name: replace(suite.sets[name], stride=1, limit=None) for name in rows}
    return run_suite(replace(suite, sets=sets, left_out=()), loaded, tokenizer, in_memory=rows)


def _compared(
    name: str, stored: StoredResults, again: Mapping[str, Any], rows: Mapping[str, Sequence[Example]]
) -> Check:
    before, worst, count = stored.with_examples()["sets"], 0.0, 0
    for part in rows:
        for one, scores in again["sets"][part]["examples"].items():
            for label, value in scores.items():
                stated = before[part]["examples"].get(one, {}).get(label, math.nan)
                if isinstance(value, str) or isinstance(stated, str) or (stated is None and value is None):
                    continue
                if isinstance(stated, float) and math.isnan(stated):
                    continue  # this label was not measured then
                count += 1
                worst = math.inf if None in (value, stated) else max(worst, abs(float(value) - float(stated)))
    total = sum(map(len, rows.values()))
    text = f"{name}: {count} scores of {total} rows measured again differ by {worst:.1e} at most"
    if not count:
        return Check("replay", False, f"{name}: no score could be compared")
    return Check("replay", worst <= TOLERANCE, text + ("" if worst <= TOLERANCE else f", more than {TOLERANCE:.0e}"))
