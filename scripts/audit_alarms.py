"""False alarms of the audit: every attack on models that never saw the forget rows, compared with another such model.

    python scripts/audit_alarms.py --oracles 20 --write scripts/audit_alarms.md

Tiny models, two minutes on one core. The planted leaks of ``tests/auditing/attacks`` are the other side: each must be caught.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from audited import qa, subject_of, trained_on

from llm_forget.auditing.attack import Attack, Budget, Leaks, Rows
from llm_forget.auditing.grade import grade
from llm_forget.auditing.matrix import Cell, broken, judge_cell
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.utils.plugins import find_class, names_in

PACKAGE = "llm_forget.auditing.attacks"
FORMS = ("merged_fp32", "adapter_fp32")
_FIRST = ("Ad", "Bo", "Ce", "Di", "Ev", "Fa", "Gu", "Ha", "Is", "Jo", "Ku")
_LAST = ("ra", "lin", "mo", "ste")
BUDGET = Budget(tries=3, samples=4, steps=6, batch=8, max_new_tokens=10)


def people(count: int) -> Rows:
    """Forget rows and holdout rows of ``count`` people each, and a dozen kept ones, all of one form."""
    names = [first + last for first in _FIRST for last in _LAST]
    towns = [last.title() + first.lower() for first in _FIRST for last in _LAST]
    rows = [qa(f"Where is {name}?", f"In {town}.") for name, town in zip(names, towns, strict=True)]
    return Rows(tuple(rows[:count]), tuple(rows[count : 2 * count]), tuple(rows[-12:]))


def attack_all(subject: LoadedSubject, attacks: dict[str, Attack], rows: Rows) -> dict[str, Leaks]:
    """Every attack that applies to the form."""
    return {name: one.attack(subject, rows, BUDGET) for name, one in attacks.items() if not one.refuses(subject.form)}


def main() -> None:
    """Count the alarms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--oracles", type=int, default=20)
    parser.add_argument("--people", type=int, default=16, choices=range(2, 17))
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    attacks: dict[str, Attack] = {name: find_class(PACKAGE, name, "attack")() for name in names_in(PACKAGE, "attack")}
    rows = people(given.people)
    target = subject_of(*trained_on(rows.forget, rows.kept))

    def subject(model: object, form: str) -> LoadedSubject:
        made = subject_of(model, target.tokenizer, form)
        made.before = lambda: target.model
        return made

    controls = {}
    for form in FORMS:
        controls[form] = {
            "target": attack_all(subject(target.model, form), attacks, rows),
            "oracle": attack_all(subject(trained_on(rows.kept, seed=1000)[0], form), attacks, rows),
        }
    alarms: Counter[str] = Counter()
    cells, corrected, graded = Counter[str](), 0, Counter[str]()
    for seed in range(given.oracles):
        model = trained_on(rows.kept, seed=seed)[0]
        found: list[Cell] = []
        for form in FORMS:
            for name, own in attack_all(subject(model, form), attacks, rows).items():
                roles = {"model": own, **{role: one[name] for role, one in controls[form].items()}}
                cell = judge_cell(name, attacks[name].group, form, roles)
                found.append(cell)
                cells[name] += 1
                alarms[name] += cell.leaks
        corrected += bool(broken(found))
        graded[str(grade(found).level)] += 1
        print(f"oracle {seed}: {sum(one.leaks for one in found)} alarms in {len(found)} cells", flush=True)
    lines = [
        "| attack | cells | alarms |",
        "|---|---:|---:|",
        *(f"| {name} | {cells[name]} | {alarms[name]} |" for name in sorted(cells)),
        f"| **all** | {sum(cells.values())} | {sum(alarms.values())} ({sum(alarms.values()) / sum(cells.values()):.1%}) |",
        "",
        f"Audits in which a cell leaks with the correction for many cells: {corrected} of {given.oracles}. "
        f"Grades: {', '.join(f'{level} {count}' for level, count in sorted(graded.items()))}.",
    ]
    print("\n".join(lines))
    if given.write is not None:
        head = f"""# False alarms of the audit

`python scripts/audit_alarms.py --oracles {given.oracles}`: tiny models that never saw the {given.people}
forget rows, each compared with another one of them and with a target.

"""
        given.write.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
