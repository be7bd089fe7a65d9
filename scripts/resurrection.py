"""Do earlier requests stay forgotten when later ones are forgotten? Joint, sequential and stacked adapters at k = 1, 4 and 16.

python scripts/resurrection.py FOLDER [--requests 16] [--seeds 1] [--write scripts/resurrection.md]

A small model learns invented people; each request is one of them. For each way there is a ledger, and each request is a batch of
its own, forgotten and tested by the code of `llm-forget requests forget`. Run it again after an interruption, and it goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from llm_forget.config import UnlearnRecipe
from llm_forget.data.collate import collate
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.demo.splits import make_splits, write_splits
from llm_forget.errors import UserError
from llm_forget.model.load import load_model
from llm_forget.model.logprobs import score_answers
from llm_forget.model.measure import answer_logps
from llm_forget.requests import batches
from llm_forget.requests.forgetting import Workshop, forget_batch
from llm_forget.requests.ledger import HOW, Ledger, Measured
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.build import build
from llm_forget.utils.files import new_folder, write_json

FACTS = 2
BATCH, STEPS = 8, 300  # rows of a step, and most steps of a batch of requests
SHOWN = (1, 4, 16)
SYSTEM = EncodingConfig(system_prompt="")
NOTES = """\
Every request is one invented person with {facts} rows. The model, a Llama with {layers} blocks of width {hidden}, was
trained from scratch on {rows} rows until it gave every answer. It knows {people} people to forget and {kept} to keep.
The method is npo with the retain term nll, rank {rank}, at most 300 steps, until the mean answer probability of the
forget rows is 0.2, and in the best state that keeps 80 % of the probability of the rows to keep. Figures are mean
answer probabilities. *Earlier* is over the rows of all requests before the last one, *worst* the request with the
highest. *Came back*: requests that regained a fifth of what their own batch had taken away. *Seconds*: all batches so
far, with their tests, on one busy core.

What this does not show: models of a usual size, people with many rows, requests that share facts, other methods, many
seeds, other ways of asking (`llm-forget audit`). A joint adapter is trained again on all requests each time, so its
cost grows with their number.
"""


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    requests: int = 16
    kept: int = 12
    hidden: int = 48
    layers: int = 2
    rank: int = 8
    epochs: int = 60


def make_world(folder: Path, size: Size, seed: int) -> None:
    """Data, one file per request, and a model that knows all rows."""
    if (folder / "base").is_dir():
        return
    splits = make_splits(
        forget_people=size.requests, retain_people=size.kept, holdout_people=8, facts_per_person=FACTS, seed=seed
    )
    write_splits(splits, folder)
    for number in range(size.requests):
        own = splits.forget[number * FACTS : (number + 1) * FACTS]
        (folder / f"request-{number:02}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in own), encoding="utf-8"
        )
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, hidden=size.hidden, layers=size.layers, seed=seed)
    rows = [row for name in ("forget", "retain") for row in encoded(folder, name, tokenizer)]
    learn(model, rows, size.epochs, seed)
    with new_folder(folder / "base") as base:
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)


def learn(model: Any, rows: Sequence[Any], epochs: int, seed: int, batch: int = 8) -> None:
    """Train all weights on the rows, a few at a time."""
    optimiser, draw = torch.optim.Adam(model.parameters(), lr=3e-3), random.Random(seed)
    for _ in range(epochs):
        order = draw.sample(list(rows), len(rows))
        for start in range(0, len(order), batch):
            loss = -score_answers(model, collate(order[start : start + batch], 0)).mean_logps.mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()


def encoded(folder: Path, name: str, tokenizer: Any) -> Sequence[Any]:
    """The rows of a set."""
    return encode_all(tokenizer, read_examples(DataSource(str(folder / f"{name}.jsonl"))), SYSTEM)[0]


def recipe(folder: Path, size: Size, seed: int) -> UnlearnRecipe:
    """The recipe of every batch."""
    values = {
        "model": {"name": str(folder / "base"), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain", "holdout")},
        "encoding": {"system_prompt": ""},
        "method": {"name": "npo"},
        "retain": {"weight": 12.0},
        "adapter": {"rank": size.rank, "alpha": size.rank},
        "train": {"epochs": 1, "batch_size": BATCH, "learning_rate": 3e-3, "save_steps": 0},
        "stop": {"every": 4, "rows": 64, "forget_target": 0.2, "utility_floor": 0.8, "patience": 1000},
        "output_dir": "unused",
        "seed": seed,
    }
    return build(UnlearnRecipe, values, "resurrection")


def run(folder: Path, how: str, size: Size, seed: int) -> None:
    """Forget all requests one after another."""
    ledger = Ledger(folder / how / "requests.sqlite")
    shop = Workshop(ledger, recipe(folder, size, seed), folder / how, console=Console(file=io.StringIO()))
    for number in range(size.requests):
        name = f"R-{number:02}"
        try:
            ledger.request(name)
        except UserError:
            ledger.add(name, DataSource(str(folder / f"request-{number:02}.jsonl")), date(2026, 11, 2))
        if any(one.state == "done" and name in one.requests for one in batches.batches(ledger)):
            continue  # also if its target was not reached: each request is tried once
        waiting = [one for one in batches.batches(ledger) if one.state in ("planned", "running")]
        batch = waiting[0] if waiting else batches.plan(ledger, [name], how)
        rows = FACTS * (number + 1 if how == "joint" else 1)
        train = replace(shop.recipe.train, epochs=STEPS * BATCH // rows)
        done = forget_batch(replace(shop, recipe=replace(shop.recipe, train=train)), batch.id, keep=True)
        kept = retain_kept(folder, shop, done.id)
        write_json(folder / how / f"{done.id}.retain.json", kept)
        print(f"seed {seed} {how} {done.id}: {done.seconds:.1f} s, retain {kept['after']:.3f}", flush=True)
    ledger.close()


def retain_kept(folder: Path, shop: Workshop, batch: str) -> dict[str, float]:
    """Mean answer probability of the retain rows without and with the adapter."""
    found = {}
    for name, adapter in (("before", None), ("after", str(shop.adapter(batch)))):
        model, tokenizer = load_model(replace(shop.recipe.model, adapter=adapter))
        found[name] = float(answer_logps(model, encoded(folder, "retain", tokenizer), 0)[1].mean())
    return found


def table(folders: Sequence[Path], most: int) -> list[str]:
    """The lines of the table up to so many requests; means over seeds."""
    head = "| k | adapters | known before | last | earlier | worst | came back | retain | seconds |"
    lines = [head, "|--:|---|--:|--:|--:|--:|--:|--:|--:|"]
    for k in (one for one in SHOWN if one <= most):
        for how in HOW:
            found = [figures(folder / how, k) for folder in folders]
            mean = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            numbers = " | ".join(f"{mean[key]:.3f}" for key in ("before", "last", "earlier", "worst"))
            lines.append(
                f"| {k} | {how} | {numbers} | {mean['back']:.1f} of {k - 1} | {mean['retain']:.3f} | {mean['seconds']:.0f} |"
            )
    return [line.replace("nan", "–") for line in lines]


def figures(folder: Path, k: int) -> dict[str, float]:
    """The figures after k requests."""
    ledger = Ledger(folder / "requests.sqlite")
    done = batches.batches(ledger)[:k]
    tests: list[Measured] = ledger.tests_of(done[-1].id)
    ledger.close()
    last = next(one for one in tests if one.request == f"R-{k - 1:02}")
    earlier = [one for one in tests if one is not last]
    kept = json.loads((folder / f"{done[-1].id}.retain.json").read_text())
    return {
        "before": sum(one.before for one in tests) / len(tests),
        "last": last.value,
        "earlier": sum(one.value for one in earlier) / len(earlier) if earlier else float("nan"),
        "worst": max((one.value for one in earlier), default=float("nan")),
        "back": sum(one.verdict == "returned" for one in earlier),
        "retain": kept["after"],
        "seconds": sum(one.seconds or 0.0 for one in done),
    }


def main() -> None:
    """Run what is missing, print the table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    size = Size(given.requests)
    folders = [given.folder / f"seed-{seed}" for seed in range(given.seeds)]
    for seed, folder in enumerate(folders):
        make_world(folder, size, seed)
    # the table grows, so that an interruption leaves a whole part of it
    for k in (one for one in SHOWN if one <= size.requests):
        for seed, folder in enumerate(folders):
            for how in HOW:
                run(folder, how, replace(size, requests=k), seed)
        lines = table(folders, k)
        print("\n".join(lines))
        if given.write:
            given.write.write_text("\n".join([*title(given.seeds), *lines, "", notes(size)]), encoding="utf-8")


def title(seeds: int) -> list[str]:
    """The head of the file."""
    return ["# Do earlier requests stay forgotten?", "", f"`python scripts/resurrection.py FOLDER --seeds {seeds}`", ""]


def notes(size: Size) -> str:
    """What was done, and what it does not show."""
    people = {"people": size.requests, "kept": size.kept, "rows": (size.requests + size.kept) * FACTS, "facts": FACTS}
    return NOTES.format(**people, hidden=size.hidden, layers=size.layers, rank=size.rank)


if __name__ == "__main__":
    main()
