"""The Python function ``audit``: attack a loaded model, with loaded controls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.auditing.attack import Access, Budget, Rows
from llm_forget.auditing.audit import AuditSettings, answer_tokens, judge, spread
from llm_forget.auditing.fill import Plan, Seat, fill
from llm_forget.auditing.forms import Form
from llm_forget.auditing.grade import Grade, grade
from llm_forget.auditing.matrix import Cell
from llm_forget.auditing.subject import LoadedSubject, Subject
from llm_forget.data.encode import EncodingConfig
from llm_forget.data.examples import DataSource, Example, check_rows, read_examples
from llm_forget.data.readers import rows_in_memory
from llm_forget.errors import DataError
from llm_forget.model.load import with_padding
from llm_forget.utils.build import build
from llm_forget.utils.extras import require_extra

if TYPE_CHECKING:
    import pandas as pd

Given = str | Path | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Audit:
    """The result of ``audit``.

    Attributes:
        grade: the grade, with what was tried and what was not.
        cells: one cell per attack.
    """

    grade: Grade
    cells: tuple[Cell, ...] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """A table with one row per attack: value, R with its interval, the answer, and the controls' values (needs pandas)."""
        require_extra("pandas", "frame()", "report")
        import pandas as pd

        rows = [{**asdict(one), **one.controls} for one in self.cells]
        return pd.DataFrame(rows).drop(columns=["controls", "chosen"], errors="ignore")

    def __repr__(self) -> str:
        lines = [f"{self.grade.level or 'no grade'}: {self.grade.words}", *self.grade.broken_by]
        return "\n".join([*lines, "frame() returns a table; grade says what was tried and what was not"])


def audit(
    model: Any,
    tokenizer: Any,
    *,
    forget: Given,
    oracle: Any = None,
    target: Any = None,
    sham: Any = None,
    holdout: Given | None = None,
    retain: Given | None = None,
    attacks: Sequence[str] | None = None,
    quick: bool = False,
    rows: int | None = None,
    budget: Budget | None = None,
    encoding: Mapping[str, Any] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Attack a loaded model as it is, with loaded controls. ``llm-forget audit`` tries the other forms of a run too.

    Every model is back in its state at the end. Nothing is written.

    Args:
        model: a causal language model, or a ``PeftModel`` whose adapter is the change to audit.
        tokenizer: the tokenizer of all models.
        forget: rows that should be forgotten: a ``datasets.Dataset``, a list of mappings, or a file.
        oracle: a model that never saw the forget rows; without one no cell is judged.
        target: the model before unlearning; by default ``model`` without its adapter, if it is a ``PeftModel``.
        sham: the same recipe run on other rows.
        holdout: rows of the same kind that no model was trained on.
        retain: rows that every model should know.
        attacks: names or paths of attacks; None for all (with ``quick``: the quick ones).
        quick: a screening.
        rows: most rows of each set.
        budget: what an attacker can afford.
        encoding: the fields of a recipe's ``encoding``.
        seed: seed of everything random.
        say: gets lines about the progress.

    Raises:
        UserError: settings or data cannot be used.
    """
    settings = AuditSettings(quick, None if attacks is None else tuple(attacks), None, rows, budget, seed)
    encodes = build(EncodingConfig, dict(encoding or {}), "audit(), encoding")
    given = {"forget": forget, "holdout": holdout, "retain": retain}
    sets = {name: spread(_examples(name, one), settings.most_rows) for name, one in given.items() if one is not None}
    if len(sets["forget"]) < 2:
        raise DataError(f"{len(sets['forget'])} forget rows; an audit needs two or more")
    data = Rows(sets["forget"], sets.get("holdout", ()), sets.get("retain", ()))
    tokenizer = with_padding(tokenizer)
    form = Form("loaded", "as loaded", adapter=hasattr(model, "disable_adapter"))
    models: dict[str, Any] = {"model": model, "oracle": oracle, "target": target, "sham": sham}
    if target is None and form.adapter:
        models["target"] = model
    plan = Plan(
        settings.chosen_attacks(), data, settings.chosen_budget(answer_tokens(tokenizer, data, encodes)), encodes
    )
    bare = target is None and form.adapter
    access = LoadedSubject.access if models["target"] is None else LoadedSubject.access | Access.TARGET
    before = (lambda: copy.deepcopy(model).unload()) if bare else (lambda: models["target"])
    seats = [
        Seat(role, form, None, _opener(one, tokenizer, encodes, form, before, bare=role == "target" and bare), access)
        for role, one in models.items()
        if one is not None
    ]
    states = [_State(one) for one in {id(one): one for one in models.values() if one is not None}.values()]
    try:
        filled = fill(plan, seats, say)
    finally:
        for state in states:
            state.restore()
    cells = judge(filled, plan.attacks)
    return Audit(grade(cells), tuple(cells))


class _State:
    """What attacks may leave behind: the mode of a model, and which weights require gradients."""

    def __init__(self, model: Any) -> None:
        self.model, self.training = model, model.training
        self.flags = [(value, value.requires_grad) for value in model.parameters()]

    def restore(self) -> None:
        for value, flag in self.flags:
            value.requires_grad_(flag)
        self.model.train(self.training)


def _opener(
    model: Any, tokenizer: Any, encoding: EncodingConfig, form: Form, before: Callable[[], Any], *, bare: bool
) -> Callable[[], Subject]:
    def load() -> Subject:
        subject = LoadedSubject(copy.deepcopy(model).unload() if bare else model, tokenizer, encoding, form)
        subject.before = before
        return subject

    return load


def _examples(name: str, rows: Given) -> list[Example]:
    if isinstance(rows, str | Path):
        return read_examples(DataSource(str(rows)))
    if isinstance(rows, Mapping):
        raise DataError(f'{name} is a {type(rows).__name__}; give rows: a list of {{"question": ..., "answer": ...}}')
    return check_rows(rows_in_memory(rows, name), DataSource(name))
