"""The model card of a shared run: the adapter's own card, with what was measured and what that does not show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llm_forget.auditing.results import read_audit
from llm_forget.evaluation.results import open_results

if TYPE_CHECKING:
    from llm_forget.runs import Run

_LIMITS = """\
## Limits

- The figures hold for the sets, the model and the form that were measured, and for nothing else.
- A high p-value or an AUC near the oracle's says that these tests found nothing. It proves no deletion.
- Ids in the evidence are digests. Whoever has a row can check whether it was in a set.
"""
_METRICS = ("probability", "rougeL_recall", "truth_ratio_arithmetic", "extraction_strength")


def shared_card(run: Path, found: Run, base: str | None, *, report: bool) -> str:
    """The README.md of the repository.

    Args:
        run: the run folder, whose adapter has a card.
        found: the run.
        base: hub id of the base; None to keep what the card says, unless it is a path of this machine.
        report: whether ``report.html`` is shared too.
    """
    text = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    front, body = _split(text)
    before = str(front.get("base_model") or "")
    named = base or (before if before and not is_local(before) else None)
    if before:
        body = body.replace(f"`{before}`", f"`{named}`" if named else "a local copy; the digest below identifies it")
    front.pop("base_model", None)
    if named:
        front = {"base_model": named, **front}
    link = (
        "\n`report.html` has the figures with their intervals, and `evidence/` the files they are from.\n"
        if report
        else ""
    )
    measured = "\n".join(_measured(run, found))
    limits = _LIMITS.replace("## Limits\n", f"## Limits\n{link}") if link else _LIMITS
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n{body.rstrip()}\n\n{measured}\n\n{limits}"


def _split(text: str) -> tuple[dict[str, Any], str]:
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return {}, text
    front = yaml.safe_load(parts[1])
    return (front if isinstance(front, dict) else {}), parts[2]


def _measured(run: Path, found: Run) -> Iterator[str]:
    """A table for each suite: this model, with the target and the oracle next to it."""
    yield "## Measured"
    reached = found.result.get("reached")
    yield ""
    yield f"{found.result.get('reason', '')}" + (
        "" if reached is None else f" Forget target reached: {'yes' if reached else 'no'}."
    )
    for file in sorted((run / "eval").glob("*.json")):
        results = open_results(file).raw
        controls = {role: one for role, one in (results.get("controls") or {}).items() if role in ("target", "oracle")}
        yield ""
        yield f"| {results['suite']} | this model | " + " | ".join(controls) + (" |" if controls else "")
        yield "|---|---:|" + "---:|" * len(controls)
        for label, values in _rows(results, controls):
            yield f"| {label} | " + " | ".join("–" if value is None else f"{value:.3f}" for value in values) + " |"
    stored = read_audit(run)
    if stored is not None:
        level = f"{stored.grade.level}, " if stored.grade.level else ""
        yield ""
        yield f"Audit: {level}{stored.grade.words}."


def _rows(results: Any, controls: dict[str, Any]) -> Iterator[tuple[str, list[float | None]]]:
    for name, entry in results["sets"].items():
        for metric in _METRICS:
            if metric in entry["metrics"]:
                others = [_of(one, name, metric) for one in controls.values()]
                yield f"{name}: {metric}", [entry["metrics"][metric]["value"], *others]
    for label, entry in ((results.get("attacks") or {}).get("auc") or {}).items():
        of_controls = [
            ((one.get("attacks") or {}).get("auc") or {}).get(label, {}).get("value") for one in controls.values()
        ]
        yield f"AUC of the {label} attack", [entry["value"], *of_controls]
    if results.get("capability"):
        of_controls = [((one.get("capability") or {}).get("acc") or {}).get("value") for one in controls.values()]
        yield "capability (accuracy)", [results["capability"]["acc"]["value"], *of_controls]


def _of(control: Any, name: str, metric: str) -> float | None:
    value = ((control.get("sets") or {}).get(name) or {}).get("metrics", {}).get(metric, {}).get("value")
    return None if value is None else float(value)


def is_local(name: str) -> bool:
    """Whether a name is a path of this machine, and no hub id."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or Path(name).exists()
