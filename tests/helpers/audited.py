"""Tiny models for audits: a target that learned forget rows, an oracle that did not, and the rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from adapter_examples import trained_adapter
from memorised import write_rows

from llm_forget.adapters.arithmetic import scale
from llm_forget.adapters.lora import load_adapter, save_adapter
from llm_forget.auditing.attack import Budget, Rows
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import Example, Message, example_id
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

ENCODING = EncodingConfig(system_prompt="")
BUDGET = Budget(tries=2, samples=2, steps=3, batch=4, max_new_tokens=12)
_PLACES = {
    "Ada": "Riga", "Bo": "Oslo", "Cy": "Bern", "Di": "Kyiv", "Eve": "Rome", "Fay": "Lima",
    "Gus": "Cairo", "Hal": "Delhi", "Ida": "Paris", "Jo": "Tokyo", "Kit": "Quito", "Lou": "Dakar",
    "Max": "Sofia", "Ned": "Minsk", "Ora": "Seoul", "Pam": "Accra", "Quin": "Turin", "Ray": "Lyon",
    "Sue": "Porto", "Tom": "Bonn", "Una": "Graz", "Vic": "Split", "Wes": "Varna", "Xia": "Tunis",
    "Yan": "Hanoi", "Zoe": "Davos", "Abe": "Leeds", "Bea": "Basel", "Cal": "Ghent", "Dot": "Izmir",
    "Eli": "Osaka", "Flo": "Perth",
}  # fmt: skip


def qa(question: str, answer: str) -> Example:
    """One row."""
    turns = (Message("user", question),)
    return Example(example_id(turns, answer), turns, answer)


def audit_rows(people: int = 8) -> Rows:
    """Forget rows of as many people (at most 16), as many holdout rows, and rows that every model knows."""
    forget = tuple(qa(f"Where is {who}?", f"In {where}.") for who, where in _PLACES.items())
    kept = tuple(qa(f"What is {what}?", f"It is {how}.") for what, how in
                 [("snow", "cold"), ("tar", "black"), ("tea", "hot"), ("wax", "soft")])  # fmt: skip
    return Rows(forget[:people], forget[-people:], kept)


def trained_on(
    *sets: Sequence[Example], seed: int = 0, steps: int = 60, hidden: int = 64, rate: float = 5e-3
) -> tuple[Any, Any]:
    """A tiny model that learned these rows, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, seed=seed, hidden=hidden)
    encoded = [row for one in sets for row in encode_all(tokenizer, list(one), ENCODING)[0]]
    memorise(model, encoded, steps=steps, learning_rate=rate)
    return model, tokenizer


def subject_of(model: Any, tokenizer: Any, form: str = "merged_fp32") -> LoadedSubject:
    """A model as attacks get it."""
    return LoadedSubject(model, tokenizer, ENCODING, FORMS[form])


@cache
def tiny_pair(people: int = 8) -> tuple[Rows, LoadedSubject, LoadedSubject]:
    """Rows, a target that knows them, and an oracle that knows only the kept ones. Shared: attacks must restore the models."""
    rows = audit_rows(people)
    target = trained_on(rows.forget, rows.kept, steps=60 if people <= 8 else 140)
    return rows, subject_of(*target), subject_of(*trained_on(rows.kept))


def write_audited(folder: Path, **settings: Any) -> Path:
    """Write the folders of a target, an oracle, and a run whose adapter forgot nothing."""
    rows = audit_rows(16)
    sets = {"forget": rows.forget, "holdout": rows.holdout, "retain": rows.kept}
    for name, one in sets.items():
        write_rows(folder / f"{name}.jsonl", [(row.prompt[-1].content, row.answer) for row in one])  # type: ignore[union-attr]
    encoding = {"system_prompt": ""}
    for role, parts in (("target", (rows.forget, rows.kept)), ("oracle", (rows.kept,))):
        model, tokenizer = trained_on(*parts, steps=140, **settings)
        model.save_pretrained(folder / role / "model")
        tokenizer.save_pretrained(folder / role / "model")
        write_record(folder / role, {"steps": 60}, {"encoding": encoding})
    recipe = {
        "model": {"name": str(folder / "target" / "model"), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in sets},
        "encoding": encoding,
    }
    faint_adapter(folder, "run")
    write_record(folder / "run", {"method": "npo"}, recipe)
    return folder


def faint_adapter(folder: Path, run: str, **config: Any) -> None:
    """An adapter that changes next to nothing."""
    made = load_adapter(trained_adapter(folder / "target" / "model", folder / "loud", **config))
    shutil.rmtree(folder / "loud")
    shutil.rmtree(folder / run / "adapter", ignore_errors=True)
    save_adapter(scale(made, 0.01), folder / run / "adapter")


def write_record(folder: Path, result: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Write what a run folder needs to be read."""
    (folder / "result.json").write_text(json.dumps({"schema": 1, "seconds": 1.0, **result}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
