"""Validate attribution by removal: retrain without the rows that a method ranks first, and ask again.

    python scripts/attribution_removal.py --output FOLDER             all runs; about ten minutes on one core
    python scripts/attribution_removal.py --output FOLDER --table     the table of the runs that are complete

scripts/attribution_world.py makes the world, scripts/attribution_removal.md has the measured table. A run teaches a small
model all rows but the top 1 % of a method. Each run is appended to FOLDER/runs.jsonl; complete runs are not repeated, so an
interrupted test continues. The file holds numbers only.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from attribution_world import CASES, encoded, make_world, new_model, teach, word_tokenizer

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.intervals import mean_interval
from llm_forget.find.attribution.gradients import Gradients
from llm_forget.find.attribution.unlearning import Unlearning, row_losses

METHODS = ("unlearning", "gradients", "bm25", "random")
SHARE = 0.01
UNLEARNING = Unlearning()  # its settings were chosen in the worlds of seed 301, which are not in the table
_KNOWN = 0.5  # a query is drawn among those that the model answers with at least this probability per token

Run = dict[str, Any]


class Taught:
    """One world, the model that was taught all of its rows, and the queries.

    Args:
        case: one of ``CASES``.
        seed: of people, wordings, weights and order.
        queries: number of queries.
        epochs: passes over the rows about other people, and over the taught rows.
    """

    def __init__(self, case: str, seed: int, queries: int, epochs: tuple[int, int] = (14, 12)) -> None:
        world = make_world(case, seed)
        self.seed, self.rows, self.epochs = seed, world.taught, epochs[1]
        self.tokenizer = word_tokenizer([*world.before, *world.taught, *world.queries])
        self.pad = self.tokenizer.pad_token_id
        self.taught = encoded(self.tokenizer, world.taught)
        self.before = teach(
            new_model(self.tokenizer, seed), encoded(self.tokenizer, world.before), seed, epochs=epochs[0]
        )
        self.known: dict[frozenset[int], list[float]] = {}
        self.model = self.retrained(())
        losses = row_losses(self.model, encoded(self.tokenizer, world.queries), pad_token_id=self.pad)
        known = np.flatnonzero(np.exp(-losses) >= _KNOWN).tolist()
        if len(known) < queries:
            raise SystemExit(f"{case}, seed {seed}: the model knows {len(known)} answers, and {queries} are needed")
        self.queries = [world.queries[index] for index in Random(f"queries/{case}/{seed}").sample(known, queries)]

    def retrained(self, removed: Sequence[int]) -> Any:
        """The model taught all rows but some."""
        return teach(copy.deepcopy(self.before), self.taught, self.seed, removed=set(removed), epochs=self.epochs)

    def losses(self, removed: Sequence[int]) -> list[float]:
        """The cross-entropy of each query's answer after teaching all rows but some, nats per token."""
        key = frozenset(removed)
        if key not in self.known:
            model = self.retrained(removed) if removed else self.model
            asked = encoded(self.tokenizer, self.queries)
            self.known[key] = row_losses(model, asked, pad_token_id=self.pad).tolist()
        return self.known[key]

    def query(self, number: int) -> list[Encoded]:
        """A query as a set of one row."""
        return encoded(self.tokenizer, [self.queries[number]])

    def top(self, method: str, number: int) -> list[int]:
        """The 1 % of the rows that a method ranks first for a query."""
        scores = np.nan_to_num(self.scores(method, number), nan=-np.inf)
        return np.argsort(-scores, kind="stable")[: round(SHARE * len(self.rows))].tolist()

    def scores(self, method: str, number: int) -> Any:
        """(E,) one score for each taught row."""
        if method == "random":
            return np.random.default_rng(self.seed).random(len(self.rows))  # the same rows for all queries of a seed
        if method == "bm25":
            return bm25([row.text for row in self.rows], self.queries[number].text)
        kind: Any = Gradients() if method == "gradients" else UNLEARNING
        return kind.row_scores(self.model, self.taught, self.query(number), pad_token_id=self.pad)

    def share_taught(self, rows: Sequence[int], number: int) -> float:
        """The share of rows that taught the query's fact."""
        query = self.queries[number]
        return float(np.mean([(self.rows[i].person, self.rows[i].kind) == (query.person, query.kind) for i in rows]))


def bm25(texts: Sequence[str], query: str) -> Any:
    """(E,) BM25 scores by bm25s, without stemming or stop words."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords=[], show_progress=False), show_progress=False)
    return index.get_scores(bm25s.tokenize([query], stopwords=[], return_ids=False, show_progress=False)[0])


def all_runs(done: Sequence[Run], cases: Sequence[str], seeds: int, queries: int, **settings: Any) -> Iterator[Run]:
    """The runs that are not done yet, one after the other."""
    known = {(run["case"], run["seed"], run["query"], run["method"]) for run in done}
    for case in cases:
        for seed in range(seeds):
            wanted = [(number, method) for number in range(queries) for method in METHODS]
            wanted = [one for one in wanted if (case, seed, *one) not in known]
            if not wanted:
                continue
            world = Taught(case, seed, queries, **settings)
            for number, method in wanted:
                rows = world.top(method, number)
                yield {
                    "case": case,
                    "seed": seed,
                    "query": number,
                    "method": method,
                    "before": world.losses(())[number],
                    "after": world.losses(rows)[number],
                    "taught": world.share_taught(rows, number),
                }


def table(runs: Sequence[Run]) -> str:
    """Markdown: per case and method the query's loss and probability, and unlearning's advantage over each other method."""
    lines = [
        "| case | top 1 % by | taught the fact | loss, nats per token | rise [95 %] | probability | unlearning − this [95 %] |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        by_method = {method: _by_query(runs, case, method) for method in METHODS}
        for method, own in by_method.items():
            if not own:
                continue
            rise = np.array([run["after"] - run["before"] for run in own.values()])
            after = np.array([run["after"] for run in own.values()])
            both = [key for key in own if key in by_method["unlearning"]]
            ahead = np.array([by_method["unlearning"][key]["after"] - own[key]["after"] for key in both])
            lines.append(
                f"| {case} | {method} | {np.mean([run['taught'] for run in own.values()]):.2f} | {after.mean():.3f} | "
                f"{_with_interval(rise)} | {np.exp(-after).mean():.3f} | "
                f"{'–' if method == 'unlearning' else _with_interval(ahead)} |"
            )
        kept = list(by_method["unlearning"].values())
        if kept:
            before = np.array([run["before"] for run in kept])
            lines.append(
                f"| {case} | nothing removed | – | {before.mean():.3f} | – | {np.exp(-before).mean():.3f} | – |"
            )
    return "\n".join(lines)


def _by_query(runs: Sequence[Run], case: str, method: str) -> dict[tuple[int, int], Run]:
    return {(run["seed"], run["query"]): run for run in runs if (run["case"], run["method"]) == (case, method)}


def _with_interval(values: Any) -> str:
    low, high = mean_interval(values)
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def read_runs(file: Path) -> list[Run]:
    """The complete runs; a last line that was cut off is left out."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of runs.jsonl")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=4, help="queries per case and seed")
    parser.add_argument("--table", action="store_true", help="only print the table")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "runs.jsonl"
    runs = read_runs(file)
    if not args.table:
        for run in all_runs(runs, args.cases, args.seeds, args.queries):
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(run) + "\n")
            print(
                f"{run['case']} {run['seed']} {run['query']} {run['method']}: {run['before']:.3f} → {run['after']:.3f}",
                flush=True,
            )
        runs = read_runs(file)
    print(table(runs))


if __name__ == "__main__":
    main()
