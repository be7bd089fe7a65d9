"""Runs that a certificate can be made of: a tiny target and oracle, an unlearning run, all evaluated, and a key."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorised import FORGET, RETAIN, write_memorised
from rich.console import Console

from llm_forget.certificates.keys import make_key
from llm_forget.config import UnlearnRecipe
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import EvalRecipe
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build
from llm_forget.utils.files import write_record

OFF = {"perplexity": None, "capability": None, "generation.max_new_tokens": 8, "sets.retain.generate": False}
SEARCH = {
    "files": [{"file": "/home/office/train.jsonl", "rows": 10, "sha256": "0" * 64}],
    "terms": {"person": {"count": 2, "digests": ["a" * 16, "b" * 16]}},
    "salt": "c" * 32,
    "stages": ["names"],
    "hits": {"keep": 4, "misses": 6},
    "not_searched": {"/home/office/old.jsonl": "2 rows cannot be read"},
}


@dataclass(frozen=True)
class Certifiable:
    """A folder with runs, data and a key pair."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "model"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "npo"

    @property
    def key(self) -> Path:
        return self.folder / "office.key"

    @property
    def public(self) -> Path:
        return self.folder / "office.key.pub"


def measure(folder: Path, output: Path, model: dict[str, Any]) -> None:
    """Evaluate a model on the suite custom, without generation of long texts."""
    values = {"model": {"dtype": "float32", **model}, "suite": "custom", "data_dir": str(folder), "overrides": OFF}
    evaluate(build(EvalRecipe, {**values, "output_dir": str(output)}, "evaluation"))


def make_certifiable(folder: Path) -> Certifiable:
    """Make everything in about ten seconds."""
    made = Certifiable(write_memorised(folder, {"forget": FORGET, "retain": RETAIN}))
    (folder / "without").mkdir()
    write_memorised(folder / "without", {"retain": RETAIN})
    write_record(folder / "search.json", SEARCH)
    values = {
        "model": {"name": str(made.base), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "method": {"name": "npo"},
        "search": str(folder / "search.json"),
        "adapter": {"rank": 4, "alpha": 8},
        "train": {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2},
        "stop": {"forget_target": 0.05, "utility_floor": 0.0},
        "output_dir": str(made.run),
    }
    unlearn(build(UnlearnRecipe, values, "run"), Console(file=io.StringIO()))
    measure(folder, made.run, {"name": str(made.base), "adapter": str(made.run / "adapter")})
    for role, model in (("target", made.base), ("oracle", folder / "without" / "model")):
        measure(folder, folder / "runs" / role, {"name": str(model)})
    write_audit(made.run)
    make_key(made.key, None)
    return made


def write_audit(run: Path) -> None:
    """Write the result of a small audit, as `llm-forget audit` does."""
    from dataclasses import asdict

    from llm_forget.auditing.grade import grade
    from llm_forget.auditing.matrix import Cell, as_record
    from llm_forget.auditing.results import files_digests

    cells = [
        Cell("greedy", "asking", "merged_bf16", "as if never seen", 0.1, 0.0, 0.2, {}, 0.0, -0.1, 0.1, 0.5, 4),
        Cell("prefill", "text", "merged_bf16", "left", 0.6, 0.4, 0.8, {}, 0.5, 0.3, 0.7, 1e-5, 4),
        Cell("relearn", "training", "merged_bf16", "not run", why="too slow"),
    ]
    found = {
        "schema": 1,
        "complete": True,
        "files": files_digests(run),
        "settings": {"quick": True, "forms": {"merged_bf16": "merged"}, "budget": {"tries": 1}},
        "grade": asdict(grade(cells)),
        "cells": [as_record(one) for one in cells],
    }
    (run / "audit").mkdir()
    write_record(run / "audit" / "audit.json", json.loads(json.dumps(found)))
