"""A table of planted leaks: what each attack catches, and its false alarms on oracles.

The tests in tests/auditing/attacks plant a leak for each attack: a tiny model that gives way to it and not to the plain question.
This script runs them, notes every cell that they judge, and then runs each attack on oracles of other seeds, which must raise no
alarm. One to two minutes per attack on one core. Results are kept in a file, so attacks can be run in groups.

    python scripts/planted_leaks.py [--oracles 20] [--only NAME …] [--kept planted_leaks.json] [--write scripts/planted_leaks.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
sys.path[:0] = [str(HERE.parent), str(TESTS / "helpers"), str(HERE)]

import leaky_models  # noqa: E402
import planted  # noqa: E402

from llm_forget.auditing.attack import Attack  # noqa: E402
from llm_forget.auditing.matrix import Cell, judge_cell  # noqa: E402
from llm_forget.utils.plugins import find_class, names_in  # noqa: E402

PACKAGE = "llm_forget.auditing.attacks"
HEAD = """# Planted leaks

Written by `scripts/planted_leaks.py`. Each attack is tried on a tiny model into which a leak was planted that it should find, and
on {oracles} models that never saw the data. *Left*: the share of the target's lead over the oracle that the attack gets out (R).
*Asked plainly*: the same for greedy answers. *Alarms*: oracles on which the cell leaks (R of 20 % or more, p below 1 %).

| attack | left | caught | asked plainly | alarms |
|---|---|---|---|---|
"""


class Notes:
    """A pytest plugin that notes the cells that a test judges."""

    def __init__(self) -> None:
        self.cells: dict[str, list[tuple[str, Cell]]] = {}
        self.failed: set[str] = set()
        self._test = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Remember the test."""
        self._test = item.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        if report.failed:
            self.failed.add(report.nodeid)

    def note(self, name: str, cell: Cell) -> None:
        """Note a cell of the running test."""
        self.cells.setdefault(self._test, []).append((name, cell))


def attack_of(name: str) -> Attack:
    """An attack with its defaults."""
    found: Attack = find_class(PACKAGE, name, "attack")()
    return found


def cell_of(name: str, *, own: Any, oracle: Any, target: Any, rows: Any, budget: Any) -> Cell:
    """One cell."""
    attack = attack_of(name)
    found = {role: attack.attack(one, rows, budget) for role, one in
             (("model", own), ("oracle", oracle), ("target", target))}  # fmt: skip
    return judge_cell(name, attack.group, "merged_fp32", found)


def run_tests(only: list[str] | None) -> Notes:
    """Run the tests that plant leaks."""
    notes, caught, judged = Notes(), leaky_models.caught, planted.cell_of

    def noting(name: str, subject: Any) -> bool:
        given = {"oracle": leaky_models.oracle(), "target": leaky_models.target()}
        rows, budget = leaky_models.people(), leaky_models.BUDGET
        notes.note(name, cell_of(name, own=subject, **given, rows=rows, budget=budget))
        return caught(name, subject)

    def noting_cell(attack: Attack, given: Any, model: Any) -> Cell:
        cell = judged(attack, given, model)
        notes.note(type(attack).__module__.rsplit(".", 1)[-1], cell)
        return cell

    leaky_models.caught, planted.cell_of = noting, noting_cell
    words = [] if only is None else ["-k", " or ".join(only)]
    options = ["-q", "-n", "0", "-m", "", "-p", "no:cacheprovider", *words]
    pytest.main([str(TESTS / "auditing" / "attacks"), *options], plugins=[notes])
    leaky_models.caught, planted.cell_of = caught, judged
    return notes


def leak_of(name: str, notes: Notes) -> dict[str, Any] | None:
    """The planted leak of an attack: the cell in which most is left, and the plain question on the same model."""
    tests = {test: cells for test, cells in notes.cells.items() if any(one == name for one, _ in cells)}
    if not tests:
        return None
    judged = [(cell, test) for test, cells in tests.items() for one, cell in cells if one == name]
    best, test = max(judged, key=lambda one: one[0].left or 0.0)
    plain = [cell.left for one, cell in tests[test] if one == "greedy"]
    return {"left": best.left, "caught": best.leaks, "plain": plain[0] if plain and name != "greedy" else None}


def alarms_of(name: str, oracles: int) -> int | None:
    """Oracles on which an attack raises an alarm; None for an attack that needs more than a plain model."""
    target, rows = leaky_models.target(), leaky_models.people()
    if name in ("membership", "relearn_membership"):
        rows, known, never = planted.sixteen()
        models = [planted.another_oracle(seed, rows) for seed in range(1, oracles + 1)]
        return sum(
            cell_of(name, own=one, oracle=never, target=known, rows=rows, budget=planted.BUDGET).leaks for one in models
        )
    before = leaky_models.oracle()
    models = [leaky_models.oracle(seed) for seed in range(2, oracles + 2)]
    for one in (target, before, *models):
        one.before = lambda: target.model
    given = {"oracle": before, "target": target, "rows": rows, "budget": leaky_models.BUDGET}
    return sum(cell_of(name, own=one, **given).leaks for one in models)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracles", type=int, default=20)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--kept", type=Path, default=Path("planted_leaks.json"))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    kept: dict[str, Any] = json.loads(given.kept.read_text()) if given.kept.is_file() else {}
    names = [
        name for name in names_in(PACKAGE, "attack") if (given.only is None or name in given.only) and name not in kept
    ]
    notes = run_tests(given.only) if names else Notes()
    for name in names:
        leak = leak_of(name, notes)
        if leak is None:
            continue
        kept[name] = {**leak, "alarms": alarms_of(name, given.oracles), "oracles": given.oracles}
        given.kept.write_text(json.dumps(kept, indent=1))
        print(row(name, kept[name]), flush=True)
    lines = [row(name, kept[name]) for name in sorted(kept)]
    tries, alarms = (sum(one[key] for one in kept.values()) for key in ("oracles", "alarms"))
    lines += ["", f"Caught: {sum(one['caught'] for one in kept.values())} of {len(kept)}. "
                  f"False alarms: {alarms} of {tries} ({alarms / max(tries, 1):.1%})."]  # fmt: skip
    print("\n".join(lines[-1:]))
    if given.write:
        given.write.write_text(HEAD.format(oracles=given.oracles) + "\n".join(lines) + "\n", encoding="utf-8")


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    plain = "–" if found["plain"] is None else f"{found['plain']:.2f}"
    caught = "yes" if found["caught"] else "no"
    return f"| `{name}` | {found['left']:.2f} | {caught} | {plain} | {found['alarms']} of {found['oracles']} |"


if __name__ == "__main__":
    main()
