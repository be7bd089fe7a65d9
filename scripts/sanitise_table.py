"""Sanitise the adapters of several runs and tabulate what it changes, on people who were in no set that the command saw.

    python scripts/sanitise_table.py RUN... --base MODEL --forget FILE --retain FILE --neighbour FILE --results FILE

Each adapter is one line of the results file. Run it again to continue: runs whose adapter has a line are skipped.

An adapter is *improved* if, at a forget probability no higher than before, the neighbours' probability is at least 0.02 higher.
Only scaling the adapter down is the alternative, so the table also has the neighbours at the strength of the unsanitised adapter
that forgets as much; at strength 1 that is the adapter as it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from llm_forget.adapters.compose import adapter_digest
from llm_forget.adapters.lora import Adapter, load_adapter
from llm_forget.config import ModelConfig
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.model.load import load_tokenizer
from llm_forget.model.measure import answer_logps
from llm_forget.search.behaviour import AdaptedModel, Probe
from llm_forget.search.sanitise import Rows, sanitise_adapter

LEAST = 0.02  # rise of the neighbours' probability that counts


def neighbours_of(probe: Probe, adapter: Adapter, neighbours: list[Any]) -> float:
    """The mean answer probability of the neighbours with an adapter."""
    adapted = AdaptedModel(probe.model, [adapter])
    return float(answer_logps(adapted.model, neighbours, adapted.pad_token_id)[1].mean())


def measure(run: Path, probe: Probe, rows: Rows, neighbours: list[Any], weight: float) -> dict[str, Any]:
    """One line of the table."""
    adapter, started = load_adapter(run / "adapter"), time.monotonic()
    line: dict[str, Any] = {"run": run.name, "digest": adapter_digest(adapter), "weight": weight}
    line["neighbour before"] = neighbours_of(probe, adapter, neighbours)
    try:
        found = sanitise_adapter(adapter, probe, rows, weight=weight)
    except UserError as error:
        return {**line, "failed": str(error)}
    return {
        **line,
        "forget before": found.before.forget,
        "forget after": found.after.forget,
        "retain before": found.before.keep,
        "retain after": found.after.keep,
        "neighbour after": neighbours_of(probe, found.adapter, neighbours),
        "strength": found.strength,
        "seconds": round(time.monotonic() - started, 1),
    }


def improved(line: dict[str, Any]) -> bool:
    """Whether the neighbours are better at no weaker forgetting."""
    if "failed" in line or line["forget after"] > line["forget before"] + 1e-3:
        return False
    return bool(line["neighbour after"] >= line["neighbour before"] + LEAST)


def table(lines: list[dict[str, Any]]) -> str:
    """A Markdown table, one line per run."""
    names = ("forget before", "forget after", "retain before", "retain after", "neighbour before", "neighbour after")
    shown = ["| run | " + " | ".join(names) + " | strength | s | improved |", "|---" * (len(names) + 4) + "|"]
    for line in sorted(lines, key=lambda one: one["run"]):
        numbers = [f"{line[name]:.3f}" if line.get(name) is not None else "–" for name in names]
        more = [f"{line['strength']:.3g}", f"{line['seconds']:.0f}"] if "failed" not in line else ["–", "–"]
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
    given = parser.parse_args()
    probe = Probe(
        ModelConfig(given.base, dtype="float32"), EncodingConfig(system_prompt=given.system_prompt), given.rows
    )
    rows = Rows(DataSource(given.retain), DataSource(given.forget))
    neighbours = encode_all(load_tokenizer(probe.model), read_examples(DataSource(given.neighbour)), probe.encoding)[0]
    text = given.results.read_text(encoding="utf-8") if given.results.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    for run in given.runs:
        digest = adapter_digest(load_adapter(run / "adapter"))
        if any(line["digest"] == digest and line["weight"] == given.weight for line in lines):
            continue
        lines.append(measure(run, probe, rows, neighbours, given.weight))
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
