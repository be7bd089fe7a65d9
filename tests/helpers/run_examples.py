"""Small complete run folders in the current schema of the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llm_forget.evaluation.results import write_results
from llm_forget.utils.files import write_record

SETS = ("forget", "retain")
ROWS = 39


def metric(value: float, forgotten: str) -> dict[str, Any]:
    ends = {"low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}
    return {"value": value, "n": ROWS, "seed": 0, "bounds": [0.0, 1.0], "forgotten": forgotten, **ends}


def write_run(
    folder: Path,
    *,
    forget: float,
    retain: float,
    method: str | None = None,
    seconds: float = 10.0,
    said: str | None = None,
) -> Path:
    """Write one complete run; `said` is the recorded generated text, as with keep_text."""
    folder.mkdir(parents=True)
    result = {"seconds": seconds, "steps": 4, **({"method": method} if method else {})}
    write_record(folder / "result.json", result)
    recipe = {"model": {"name": "../target/model"}, "train": {"epochs": 2}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    values = {"forget": forget, "retain": retain}
    text = {} if said is None else {"generated": said}
    sets = {
        name: {
            "forget": name == "forget",
            "n": ROWS,
            "digest": f"digest-{name}",
            "metrics": {"probability": metric(values[name], "low" if name == "forget" else "none")},
            "examples": {
                f"{name}{i:02}": {"probability": values[name] + (i % 3 - 1) / 100, **text} for i in range(ROWS)
            },
        }
        for name in SETS
    }
    correct = {"q0": [True, True], "q1": [False, True]}
    capability = {"task": "arc", "n": 2, "acc": {"value": 0.5, "n": 2}, "correct": correct}
    header = {"schema": 2, "suite": "tiny", "settings": {"seed": 0}, "seconds": {"score": 1.0}}
    write_results({**header, "sets": sets, "capability": capability}, folder / "eval" / "tiny.json")
    return folder


def write_family(root: Path, said: str | None = None) -> Path:
    """Write target, oracle and two unlearned runs; npo forgets more at the same retain score, so only npo is on the front."""
    write_run(root / "target", forget=0.9, retain=0.8)
    write_run(root / "oracle", forget=0.1, retain=0.8)
    write_run(root / "npo", forget=0.15, retain=0.8, method="npo", said=said)
    write_run(root / "grad_ascent", forget=0.3, retain=0.5, method="grad_ascent", said=said)
    return root
