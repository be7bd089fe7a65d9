"""A table of audited runs: grades, what breaks each, and whether the forecast from files ranks what rounding brings back.

Reads runs that `llm-forget audit` has attacked, on merged weights and on nf4, with `membership` among the attacks.

    python scripts/audit_table.py RUN … [--write audit_table.md]
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from llm_forget.auditing.results import StoredAudit, read_audit  # noqa: E402

LEAST = 0.05  # share of the target's lead that a run must have lost, so that some of it can return
WHOLE, ROUNDED, ATTACK = "merged_bf16", "nf4", "membership"
HEAD = """# Audits of the demo's runs

Written by `scripts/audit_table.py`. Seed 1 of the demo, recipes of `recipes/demo`, one training run each. `recipes/demo` has no
`masc`, `name_swap`, `shred` and `unilogit`: they ran with the settings of `npo.yaml`. A run whose floor broke before anything
was forgotten keeps the model as it was, and has no forecast.

## Grades

*Quick*: the screening. *Cells*: how many were run, and how many leak after Holm's correction. *Worst*: the cells that leak most.

| run | audit | grade | cells | leak | worst | next |
|---|---|---|---|---|---|---|
"""
MIDDLE = """
## Forecast of nf4 from files

*Kept*: cosine between the update and what rounding to nf4 leaves of it, computed from the files of target and adapter. *AUC*: the
attack `membership` on merged weights and on nf4. *Returns*: R on nf4 minus R on merged weights. *Of the forgotten*: the same as a
share of 1 − R on merged weights, which is what there was to return.

| run | update / bin | kept | AUC merged | AUC nf4 | returns | of the forgotten |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    audits = {run.name: audit for run in given.runs if (audit := read_audit(run)) is not None}
    if lacking := [run.name for run in given.runs if run.name not in audits]:
        print(f"no audit in {', '.join(lacking)}; run `llm-forget audit RUN` first", file=sys.stderr)
    text = HEAD + "".join(_graded(name, one) + "\n" for name, one in audits.items()) + MIDDLE
    found = {name: one for name, audit in audits.items() if (one := _rounded(audit)) is not None}
    text += "".join(
        f"| {name} | " + " | ".join(f"{value:.2f}" for value in one) + " |\n" for name, one in found.items()
    )
    ranked = [one for one in found.values() if not math.isnan(one[5])]
    if len(ranked) > 2:
        from scipy.stats import spearmanr

        lost = [1 - one[1] for one in ranked]
        ranks = [spearmanr(lost, [one[place] for one in ranked]).statistic for place in (5, 4)]
        text += (
            f"\nSpearman's rank correlation of 1 − *kept*, over the {len(ranked)} runs that had anything to return: "
            f"{ranks[0]:.2f} with *of the forgotten*, {ranks[1]:.2f} with *returns*. `forecast_ranks.md` has other forecasts "
            "and a finer measure.\n"
        )
    print(text)
    if given.write:
        given.write.write_text(text, encoding="utf-8")


def _graded(name: str, audit: StoredAudit) -> str:
    run = [one for one in audit.cells if one.value is not None]
    grade, kind = audit.grade, "quick" if audit.raw["settings"]["quick"] else "full"
    kind += "" if audit.raw.get("complete") else ", unfinished"
    worst = "; ".join(grade.broken_by[:3]) or "–"
    size = f"{len({one.attack for one in run})} attacks × {len({one.form for one in run})} forms, {len(run)}"
    return (
        f"| {name} | {kind} | {grade.level or 'none'} | {size} | {len(grade.broken_by)} | {worst} | {grade.next_step} |"
    )


def _rounded(audit: StoredAudit) -> tuple[float, ...] | None:
    """Update over bin, kept, AUC on merged weights and on nf4, what returns, and that of the forgotten; None without one."""
    whole, rounded = (audit.cell(ATTACK, form) for form in (WHOLE, ROUNDED))
    forecast = audit.raw.get("forecast", {}).get(ROUNDED)
    if whole is None or rounded is None or forecast is None:
        return None
    if whole.value is None or rounded.value is None or whole.left is None or rounded.left is None:
        return None
    returns = rounded.left - whole.left
    forgotten = 1 - whole.left
    share = returns / forgotten if forgotten >= LEAST else math.nan
    return forecast["ratio"], forecast["kept"], whole.value, rounded.value, returns, share


if __name__ == "__main__":
    main()
