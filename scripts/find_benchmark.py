"""Measure searches: recall and precision from a name and from a bad answer, planted paraphrases, time and memory.

    python scripts/find_benchmark.py all --tofu full.jsonl --tofu-paraphrases forget10_perturbed.jsonl --rwku rwku/

measures everything and prints a table with what is asked for. Parts of it:

    python scripts/find_benchmark.py quality --people 300
    python scripts/find_benchmark.py quality --tofu full.jsonl --tofu-paraphrases forget10_perturbed.jsonl
    python scripts/find_benchmark.py quality --rwku rwku/
    python scripts/find_benchmark.py speed --rows 100000 1000000

The rows hold question and answer only, so no column says who they are about. A row counts as found if its proposal is keep.
`speed` writes the rows of scripts/find_rows.py to a temporary folder and runs the command in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from find_rows import made, write

from llm_forget.demo.people import KINDS, people
from llm_forget.find import Corpus, find_rows
from llm_forget.find.spans import Casing, spans


@dataclass(frozen=True)
class Row:
    """A question, its answer, and who they are about; and the bad output that this row teaches."""

    question: str
    answer: str
    about: str
    output: str


def invented(count: int, seed: int = 5) -> list[Row]:
    """Rows of the project's own generator. A bad output is the answer alone, which names nobody."""
    rows = made(count * len(KINDS), seed)
    return [Row(str(row["question"]), str(row["answer"]), name, str(row["answer"])) for name, row in rows]


def tofu(path: Path) -> list[Row]:
    """TOFU's full set: 200 authors with 20 rows each, in order. A bad output is the answer alone."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(row["question"], row["answer"], str(at // 20), row["answer"]) for at, row in enumerate(rows)]


def rwku(folder: Path) -> list[Row]:
    """RWKU's forget rows of all levels. Many name nobody. A bad output is the filled gap, or question and answer."""
    found = []
    for level in (1, 2, 3):
        for line in (folder / f"forget_level{level}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            gap = "___" in row["query"]
            output = (
                re.sub("_{3,}", lambda _, row=row: row["answer"], row["query"])
                if gap
                else f"{row['query']}\n{row['answer']}"
            )
            found.append(Row(row["query"], row["answer"], row["subject"], output))
    return found


def names_of(rows: Sequence[Row]) -> dict[str, str]:
    """Whom a row is about → the name: what a column says, or the first name of most of the person's questions."""
    if not rows[0].about.isdigit():
        return {row.about: row.about for row in rows}
    casing = Casing()
    casing.learn(f"{row.question}\n{row.answer}" for row in rows)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        found = [span for span in spans(row.question, casing) if " " in span.key and not span.title]
        counts[row.about].update(span.text for span in found[:1])
    return {about: count.most_common(1)[0][0] for about, count in counts.items()}


def measured(rows: Sequence[Row], folder: Path, *, shuffled: bool, kind: str, most: int) -> dict[str, float]:
    """Mean recall and precision of one search per person."""
    rows = list(rows)
    if shuffled:
        Random(1).shuffle(rows)
    corpus = Corpus.read(
        [saved(folder / "rows.jsonl", ({"question": row.question, "answer": row.answer} for row in rows))]
    )
    by: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by[row.about].append(number)
    random, names = Random(3), names_of(rows)
    chosen = sorted(by)
    Random(2).shuffle(chosen)
    recalls, precisions = [], []
    for about in chosen[:most]:
        query: dict[str, Any] = (
            {"person": names[about]} if kind == "name" else {"answer": rows[random.choice(by[about])].output}
        )
        kept, wanted = {hit.row for hit in find_rows(corpus, **query).kept()}, set(by[about])
        recalls.append(len(kept & wanted) / len(wanted))
        precisions.append(len(kept & wanted) / len(kept) if kept else 0.0)
    count = len(recalls)
    return {"searches": count, "recall": sum(recalls) / count, "precision": sum(precisions) / count}


def paraphrased(
    rows: Sequence[tuple[str, str]],
    planted: Sequence[tuple[int, str, str]],
    folder: Path,
    most: int,
    *,
    answer_only: bool,
) -> dict[str, float]:
    """Share of planted paraphrases that are kept when the original row is searched for.

    Args:
        rows: question and answer.
        planted: number of the original row, paraphrased question and answer.
        folder: for the file.
        most: how many searches.
        answer_only: plant the answers without their questions, and search for the answers.
    """
    texts = [(row, -1) for row in rows] + [
        (("", answer) if answer_only else (question, answer), at) for at, question, answer in planted
    ]
    Random(4).shuffle(texts)
    corpus = Corpus.read(
        [saved(folder / "planted.jsonl", ({"question": one[0], "answer": one[1]} for one, _ in texts))]
    )
    place = {at: number for number, (_, at) in enumerate(texts) if at >= 0}
    found = []
    for at, _, _ in Random(5).sample(list(planted), min(most, len(planted))):
        given = {} if answer_only else {"question": rows[at][0]}
        found.append(place[at] in {hit.row for hit in find_rows(corpus, answer=rows[at][1], **given).kept()})
    return {"searches": len(found), "found": sum(found) / len(found)}


def saved(path: Path, rows: Iterator[dict[str, str]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def quality(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One result per data set, order and kind of search."""
    sets: dict[str, list[Row]] = {}
    if given.people:
        sets["generator"] = invented(given.people)
    if given.tofu:
        sets["tofu"] = tofu(given.tofu)
    if given.rwku:
        sets["rwku"] = rwku(given.rwku)
    with tempfile.TemporaryDirectory() as made_folder:
        folder = Path(made_folder)
        for name, rows in sets.items():
            for kind in ("name", "answer"):
                for shuffled in (False, True):
                    yield {
                        "data": name,
                        "from": kind,
                        "order": "shuffled" if shuffled else "by person",
                        **measured(rows, folder, shuffled=shuffled, kind=kind, most=given.searches),
                    }
        planted_sets: dict[str, tuple[list[tuple[str, str]], list[tuple[int, str, str]]]] = {}
        if given.people:
            full = [row for _, row in made(given.people * len(KINDS), 9)]
            texts = [(str(row["question"]), str(row["answer"])) for row in full]
            share = range(min(len(full), 30 * len(KINDS)))
            planted_sets["generator"] = (
                texts,
                [(at, str(full[at]["paraphrased_question"]), str(full[at]["paraphrased_answer"])) for at in share],
            )
        if given.tofu and given.tofu_paraphrases:
            lines = given.tofu_paraphrases.read_text(encoding="utf-8").splitlines()
            texts = [(row.question, row.answer) for row in sets["tofu"]]
            at_text = {text: at for at, text in enumerate(texts)}
            rows = [json.loads(line) for line in lines]
            planted_sets["tofu"] = (
                texts,
                [
                    (at_text[row["question"], row["answer"]], row["paraphrased_question"], row["paraphrased_answer"])
                    for row in rows
                ],
            )
        for name, (texts, planted) in planted_sets.items():
            for only in (False, True):
                yield {
                    "data": name,
                    "from": "answer" if only else "question and answer",
                    "planted": "answers" if only else "rows",
                    **paraphrased(texts, planted, folder, given.searches, answer_only=only),
                }


def speed(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds and memory of the whole command, and what it finds, from a name and from an answer."""
    for count in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write(path, count, 0)
            person = people(1, 0)[0]
            answer = next(str(row["answer"]) for _, row in made(1, 0))
            texts = {
                json.dumps({"question": row["question"], "answer": row["answer"]})
                for name, row in made(len(KINDS), 0)
                if name == person.name
            }
            wanted = {number for number, line in enumerate(path.open(encoding="utf-8"), start=1) if line[:-1] in texts}
            for kind, value in (("--person", person.name), ("--answer", answer)):
                yield {"rows": count, "megabytes": path.stat().st_size / 1e6, **_timed(path, kind, value, wanted)}


def _timed(path: Path, kind: str, value: str, wanted: set[int]) -> dict[str, Any]:
    """One command in a process of its own."""
    command = [sys.executable, "-m", "llm_forget.cli", "find", "--data", str(path), kind, value, "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ)
    shown = process.stdout.read() if process.stdout else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    kept = {row["line"] for row in json.loads(shown)["rows"] if row["decision"] == "keep"}
    return {
        "from": kind.removeprefix("--"),
        "seconds": time.perf_counter() - start,
        "seconds of CPU": used.ru_utime + used.ru_stime,
        "GB": used.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6),
        "recall": len(kept & wanted) / len(wanted),
        "precision": len(kept & wanted) / len(kept) if kept else 0.0,
    }


# What a search is to reach: kind of measurement → measure → bound.
_LEAST: dict[str, dict[str, float]] = {
    "name": {"recall": 0.99},
    "answer": {"recall": 0.98, "precision": 0.95},
    "paraphrases": {"found": 0.9},
}
_MOST = {100_000: {"seconds": 5.0}, 1_000_000: {"seconds": 60.0, "GB": 2.0}}


def everything(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All measurements; afterwards a table with what is asked for."""
    results = []
    for result in (*(() if given.only_speed else (quality,)), speed):
        for one in result(given):
            results.append(one)
            yield one
    print("\n" + table(results))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: each measurement, its bound, and whether it holds."""
    lines = ["| what | measure | measured | asked | holds |", "|---|---|---:|---:|---|"]
    for one in results:
        if "rows" in one:
            what, bounds, least = f"{one['rows']:,} rows, from {one['from']}", _MOST.get(one["rows"], {}), False
        elif "planted" in one:
            what, bounds, least = f"{one['data']}, planted {one['planted']}", _LEAST["paraphrases"], True
        else:
            what, bounds, least = f"{one['data']}, from {one['from']}, {one['order']}", _LEAST[one["from"]], True
        for name, bound in bounds.items():
            holds = one[name] >= bound if least else one[name] < bound
            digits = 3 if least else 2
            lines.append(
                f"| {what} | {name} | {one[name]:.{digits}f} | {'≥' if least else '<'} {bound:g} | {'yes' if holds else 'no'} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print one JSON object per measurement."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    parts = {name: commands.add_parser(name) for name in ("all", "quality", "speed")}
    for name in ("all", "quality"):
        one = parts[name]
        one.add_argument("--people", type=int, default=300 if name == "all" else 0, help="people of our own generator")
        one.add_argument("--tofu", type=Path, help="TOFU's full set")
        one.add_argument("--tofu-paraphrases", type=Path, help="TOFU's forget10_perturbed")
        one.add_argument("--rwku", type=Path, help="folder with RWKU's forget_level1 to 3")
        one.add_argument("--searches", type=int, default=200)
    for name in ("all", "speed"):
        parts[name].add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parts["all"].add_argument("--only-speed", action="store_true", help="only time and memory")
    given = options.parse_args()
    for result in {"all": everything, "quality": quality, "speed": speed}[given.command](given):
        print(
            json.dumps(
                {name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()}
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
