"""The table of single examples: scores by id. Text is shown only if the evaluation recipe kept it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_forget.errors import UserError
from llm_forget.evaluation.results import TEXT
from llm_forget.report.tables import Cell, Table

if TYPE_CHECKING:
    import pandas as pd

    from llm_forget.runs import Run

_METRICS = ("probability", "rougeL_recall", "exact_memorisation")
_MOST = 1000  # rows, so that a phone can open the page
_REDACTED = (
    "Text is redacted: examples are named by the first digits of a digest of question and answer. To see the model's answers, "
    "evaluate with keep_text: true in the recipe and make the report again."
)


def example_table(run: Run, before: Run | None, *, redact: bool) -> Table | None:
    """Each example's scores before and after unlearning, the least forgotten first.

    Args:
        run: the run.
        before: the target's run, or None.
        redact: leave out text even if the evaluation kept it.

    Returns:
        The table, or None if there are no scores of single examples.
    """
    suite = run.suite()
    after = suite.examples() if suite else None
    if suite is None or after is None or after.empty:
        return None
    metrics = [name for name in _METRICS if name in after] or [
        name for name in after.columns if name not in ("set", "id", TEXT)
    ][:3]
    earlier = None if before is None or before.suite(suite.suite) is None else _indexed(before, suite.suite)
    own = after.set_index(["set", "id"])
    allowed = TEXT in own and not redact
    texts = _texts(run) if allowed else {}
    order = sorted(
        own.index, key=lambda key: (key[0] not in suite.forget_sets, key[0], -_value(own, key, metrics[0], -1.0))
    )
    rows = []
    for key in order[:_MOST]:
        cells = [Cell(key[1]), Cell(key[0])]
        for metric in metrics:
            value = _value(own, key, metric)
            if earlier is not None:
                cells.append(_score(_value(earlier, key, metric)))
            cells.append(_score(value))
        if allowed:
            cells += [Cell(text) for text in texts.get(key[1], ("", ""))]
            cells += [Cell(_answer(frame, key)) for frame in (earlier, own) if frame is not None]
        rows.append(cells)
    moments = ["before", "after"] if earlier is not None else ["after"]
    head = ["example", "set", *(f"{metric}, {moment}" for metric in metrics for moment in moments)]
    numeric = [False, False] + [True] * (len(head) - 2)
    if allowed:
        head += ["question", "answer on record", *(f"the model says, {moment}" for moment in moments)]
        numeric += [False] * (len(head) - len(numeric))
    note = "" if allowed else _REDACTED
    if len(order) > _MOST:
        note = f"The first {_MOST} of {len(order)} examples; the run folder holds all of them. {note}"
    return Table("examples", "Every example, the least forgotten first", head, rows, note, numeric, allowed)


def _indexed(run: Run, suite: str) -> pd.DataFrame | None:
    found = run.suite(suite)
    return None if found is None else found.examples().set_index(["set", "id"])


def _value(frame: pd.DataFrame, key: tuple[str, str], metric: str, missing: float = float("nan")) -> float:
    if metric not in frame or key not in frame.index:
        return missing
    found: Any = frame.loc[key, metric]
    value = float(found)
    return missing if value != value else value


def _answer(frame: pd.DataFrame, key: tuple[str, str]) -> str:
    value: Any = frame.loc[key, TEXT] if TEXT in frame and key in frame.index else None
    return value if isinstance(value, str) else "–"


def _score(value: float) -> Cell:
    return Cell("–") if value != value else Cell(f"{value:.3f}", value)


def _texts(run: Run) -> dict[str, tuple[str, str]]:
    """Example id → question and answer, read from the recipe's data if the files still exist."""
    from llm_forget.data.examples import DataSource, read_examples
    from llm_forget.data.sources import in_folder

    found: dict[str, tuple[str, str]] = {}
    data = run.recipe.get("data")
    for source in data.values() if isinstance(data, dict) else ():
        try:
            examples = read_examples(in_folder(DataSource(**source), run.recipe.get("data_dir"))) if source else []
        except (UserError, TypeError):
            continue
        for example in examples:
            asked = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
            found[example.id] = (asked, example.answer)
    return found
