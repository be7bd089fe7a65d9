"""A table of planted leaks: what each attack catches, and its false alarms on oracles.

For each attack, its test in tests/auditing/attacks plants a leak: a tiny model that leaks through this channel and not when asked
plainly. The attack must catch it. The attack also runs on oracles of other seeds, which must raise no alarm. About a minute
per attack on one core.

    PYTHONPATH=tests/helpers python scripts/planted_leaks.py [--oracles 20] [--only NAME …] [--write scripts/planted_leaks.md]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
sys.path[:0] = [str(TESTS / "helpers")]

from audited import subject_of, trained_on  # noqa: E402
from planted import cell_of, sixteen  # noqa: E402

from llm_forget.auditing.attacks.greedy import Greedy  # noqa: E402

HEAD = """# Planted leaks

Written by `scripts/planted_leaks.py`. Each attack is tried on a tiny model into which a leak was planted that it should find, and
on {oracles} models that never saw the data. *Left*: the share of the target's lead over the oracle that the attack gets out (R,
with its 90 % interval). *Asked plainly*: the same for greedy answers. *Alarms*: oracles on which the attack reports a leak (R of
20 % or more, interval above 0).

| attack | left | caught | asked plainly | alarms |
|---|---|---|---|---|
"""


def plants() -> dict[str, Any]:
    """Name of the attack → its test module, for modules that plant a leak."""
    found = {}
    for file in sorted((TESTS / "auditing" / "attacks").glob("test_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        if hasattr(module, "plant"):
            found[type(module.ATTACK).__module__.rsplit(".", 1)[-1]] = module
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracles", type=int, default=20)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    rows, _, _ = sixteen()
    oracles = [subject_of(*trained_on(rows.kept, seed=seed)) for seed in range(1, given.oracles + 1)]
    lines, total, caught = [], 0, 0
    for name, module in plants().items():
        if given.only and name not in given.only:
            continue
        started = perf_counter()
        planted = module.plant()
        leak, plain = cell_of(module.ATTACK, planted, planted.leaky), cell_of(Greedy(), planted, planted.leaky)
        alarms = sum(cell_of(module.ATTACK, planted, oracle).leaks for oracle in oracles)
        total, caught = total + alarms, caught + leak.leaks
        span = f"{leak.left:.2f} [{leak.left_low:.2f}, {leak.left_high:.2f}]"
        shown = "the attack itself" if name == "greedy" else f"{plain.left:.2f}"
        lines.append(f"| `{name}` | {span} | {'yes' if leak.leaks else 'NO'} | {shown} | {alarms} of {len(oracles)} |")
        print(f"{lines[-1]}  ({perf_counter() - started:.0f} s)", flush=True)
    tries = len(lines) * len(oracles)
    lines.append("")
    lines.append(
        f"Caught: {caught} of {len(lines) - 1}. False alarms: {total} of {tries} ({total / max(tries, 1):.1%})."
    )
    print(lines[-1])
    if given.write:
        given.write.write_text(HEAD.format(oracles=len(oracles)) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
