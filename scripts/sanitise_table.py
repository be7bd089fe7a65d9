"""Sanitise the adapters of several runs and tabulate what it changes, on people who were in no set that the command saw.

    python scripts/sanitise_table.py RUN... --base MODEL --forget FILE --retain FILE --neighbour FILE --results FILE

Each adapter is one line of the results file. Run it again to continue: runs whose adapter has a line are skipped.

An adapter is *improved* if, at a forget probability no higher than before, the neighbours' probability is at least 0.02 higher.

Seconds are CPU seconds of this process for sanitising, without the neighbours, which the command does not measure. Those of the
first adapter after a start, marked *, include loading the base and what is computed once for all its adapters.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from llm_forget.adapters.compose import adapter_digest
from llm_forget.adapters.lora import load_adapter
from llm_forget.config import ModelConfig
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.model.load import load_tokenizer
from llm_forget.search.behaviour import Probe
from llm_forget.search.sanitise import sanitise_adapter
from llm_forget.search.sanitise_base import Rows, SanitiseBase
from llm_forget.utils.build import build

LEAST = 0.02  # rise of the neighbours' probability that counts


def measure(run: Path, base: SanitiseBase, neighbours: list[Encoded], weight: float) -> dict[str, Any]:
    """One line of the table."""
    started = time.process_time()
    adapter = load_adapter(run / "adapter")
    line: dict[str, Any] = {"run": run.name, "digest": adapter_digest(adapter), "weight": weight}
    try:
        found = sanitise_adapter(adapter, base, weight=weight)
    except UserError as error:
        return {**line, "failed": str(error)}
    seconds = time.process_time() - started
    return {
        **line,
        "forget before": found.before.forget,
        "forget after": found.after.forget,
        "retain before": found.before.keep,
        "retain after": found.after.keep,
        "virtual before": found.before.virtual,
        "virtual after": found.after.virtual,
        "neighbour before": base.mean_probability(neighbours, adapter),
        "neighbour after": base.mean_probability(neighbours, found.adapter),
        "left": round(found.left, 4),
        "strength": found.strength,
        "seconds": round(seconds, 1),
    }


def improved(line: dict[str, Any]) -> bool:
    """Whether the neighbours are better at no weaker forgetting."""
    if "failed" in line or line["forget after"] > line["forget before"] + 1e-3:
        return False
    return bool(line["neighbour after"] >= line["neighbour before"] + LEAST)


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table, one line per run."""
    names = ("forget before", "forget after", "retain before", "retain after", "neighbour before", "neighbour after")
    shown = ["| run | " + " | ".join(names) + " | strength | CPU s | improved |", "|---" * (len(names) + 4) + "|"]
    for line in sorted(lines, key=lambda one: one["run"]):
        numbers = [f"{line[name]:.3f}" if line.get(name) is not None else "–" for name in names]
        more = (
            [f"{line['strength']:.3g}", f"{line['seconds']:.0f}{'*' * line.get('first', False)}"]
            if "failed" not in line
            else ["–", "–"]
        )
        shown.append(f"| {line['run']} | " + " | ".join([*numbers, *more, "yes" if improved(line) else "no"]) + " |")
    return "\n".join([*shown, f"\n{sum(map(improved, lines))} of {len(lines)} improved."])


def main() -> None:
    """Measure the runs that have no line yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for name in ("base", "forget", "retain", "neighbour"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--system-prompt", default=None)
    parser.add_argument("--weight", type=float, default=30.0)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--virtual", type=int, default=Rows.virtual)
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    model = build(ModelConfig, {"name": given.base, "dtype": given.dtype}, "--base and --dtype")
    probe = Probe(model, EncodingConfig(system_prompt=given.system_prompt), given.rows)
    rows = Rows(DataSource(given.retain), DataSource(given.forget), virtual=given.virtual)
    base = SanitiseBase(probe, rows, lambda text: print(text, file=sys.stderr, flush=True))
    neighbours = encode_all(load_tokenizer(model), read_examples(DataSource(given.neighbour)), probe.encoding)[0]
    text = given.results.read_text(encoding="utf-8") if given.results.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    first = True
    for run in given.runs:
        digest = adapter_digest(load_adapter(run / "adapter"))
        if any(line["digest"] == digest and line["weight"] == given.weight for line in lines):
            continue
        lines.append(measure(run, base, neighbours, given.weight) | {"first": first})
        first = False
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
