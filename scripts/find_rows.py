"""Write a large file of questions and answers about invented people, to measure searches.

    python scripts/find_rows.py --rows 1000000 --to rows.jsonl

Every person has twelve rows in a random place of the file. The people are those of the demo.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from llm_forget.demo.people import KINDS, people
from llm_forget.demo.splits import rows as rows_of

_BLOCK = 1000  # people that are made at once


def made(count: int, seed: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Name of the person and row, person by person.

    Args:
        count: number of rows.
        seed: determines everything.
    """
    left = count
    for start in range(0, -(-count // len(KINDS)), _BLOCK):
        for person in people(min(_BLOCK, -(-left // len(KINDS))), seed, start):
            for row in rows_of(person, seed)[:left]:
                yield person.name, row
            left -= len(KINDS)


def write(path: Path, count: int, seed: int, *, shuffled: bool = True) -> None:
    """Write rows with question and answer only, in a random order."""
    lines = [json.dumps({"question": row["question"], "answer": row["answer"]}) for _, row in made(count, seed)]
    if shuffled:
        Random(seed).shuffle(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Read the options and write the file."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--to", type=Path, required=True)
    options.add_argument("--sorted", action="store_true", help="person by person")
    given = options.parse_args()
    write(given.to, given.rows, given.seed, shuffled=not given.sorted)


if __name__ == "__main__":
    main()
