"""A table of planted leaks: what each attack catches, and its false alarms on oracles.

tests/helpers/leaky_models.py plants a leak for each attack: a tiny model that gives way to it and not to the plain question. Each
attack must catch its own, and must raise no alarm on oracles of other seeds. Some seconds per attack.
Results are kept in a file, so attacks can be run in groups.

    python scripts/planted_leaks.py [--oracles 20] [--only NAME …] [--kept planted_leaks.json] [--write planted_leaks.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from leaky_models import cell_of, oracle, planted  # noqa: E402
from planted import another_oracle, made, planted_membership, sixteen  # noqa: E402
from planted import cell_of as cell_of_sixteen  # noqa: E402

from llm_forget.auditing.matrix import Cell  # noqa: E402
from llm_forget.utils.plugins import names_in  # noqa: E402

ATTACKS = names_in("llm_forget.auditing.attacks", "attack")
SIXTEEN = ("membership", "relearn_membership")  # they compare with holdout rows and need more rows
HEAD = """# Planted leaks

Written by `scripts/planted_leaks.py`. Each attack is tried on a tiny model into which a leak was planted that it should find, and
on {oracles} models of other seeds that never saw the data. *Left*: the share of the target's lead over the oracle that it gets
out (R). *Asked plainly*: the same for greedy answers. *Alarms*: oracles on which the cell leaks (R of 20 % or more, p below 1 %).

| attack | left | caught | asked plainly | alarms |
|---|---|---|---|---|
"""


def tried(name: str, oracles: int) -> dict[str, Any]:
    """The planted leak of an attack, and its alarms on oracles."""
    if name in SIXTEEN:
        return _tried_on_sixteen(name, oracles)
    with planted(name) as subject:
        leak, plain = cell_of(name, subject), cell_of("greedy", subject)
    alarms = sum(cell_of(name, oracle(seed=seed)).leaks for seed in range(2, oracles + 2))
    return _found(leak, plain, alarms, oracles)


def _tried_on_sixteen(name: str, oracles: int) -> dict[str, Any]:
    rows, *_ = sixteen()
    with planted_membership(name) as world:
        leak, plain = (cell_of_sixteen(made(one), world, world.leaky) for one in (name, "greedy"))
        models = (another_oracle(seed, rows) for seed in range(1, oracles + 1))
        alarms = sum(cell_of_sixteen(made(name), world, one).leaks for one in models)
    return _found(leak, plain, alarms, oracles)


def _found(leak: Cell, plain: Cell, alarms: int, oracles: int) -> dict[str, Any]:
    return {"left": leak.left, "caught": leak.leaks, "plain": plain.left, "alarms": alarms, "oracles": oracles}


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    left, plain = ("–" if found[key] is None else f"{found[key]:.2f}" for key in ("left", "plain"))
    caught = "yes" if found["caught"] else "no"
    return f"| `{name}` | {left} | {caught} | {plain} | {found['alarms']} of {found['oracles']} |"


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracles", type=int, default=20)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--kept", type=Path, default=Path("planted_leaks.json"))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    kept: dict[str, Any] = json.loads(given.kept.read_text()) if given.kept.is_file() else {}
    for name in ATTACKS:
        if name in kept or (given.only is not None and name not in given.only):
            continue
        kept[name] = tried(name, given.oracles)
        given.kept.write_text(json.dumps(kept, indent=1))
        print(row(name, kept[name]), flush=True)
    tries, alarms = (sum(one[key] for one in kept.values()) for key in ("oracles", "alarms"))
    caught = sum(one["caught"] for one in kept.values())
    last = f"Caught: {caught} of {len(kept)}. False alarms: {alarms} of {tries} ({alarms / max(tries, 1):.1%})."
    print(last)
    if given.write:
        lines = [*(row(name, kept[name]) for name in sorted(kept)), "", last]
        given.write.write_text(HEAD.format(oracles=given.oracles) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
