"""The table of single examples: scores by id.

The model's answers are shown only if the evaluation kept them, and questions only from files that the user names. The paths in
a run's recipe are never opened: the run may come from somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.errors import UserError
from llm_forget.evaluation.scores_file import TEXT
from llm_forget.report.tables import Cell, Table

if TYPE_CHECKING:
    import pandas as pd

    from llm_forget.data.examples import DataSource
    from llm_forget.runs import Run

_METRICS = ("probability", "rougeL_recall", "exact_memorisation")
_MOST = 1000  # rows, so that a phone can open the page
_REDACTED = (
    "Text is redacted: examples are named by the first digits of a digest of question and answer. To see the model's answers, "
    "evaluate with keep_text: true in the recipe and make the report again. To see the questions, name the files that hold them "
    "with --data."
)


_QUESTIONS = "To see the questions too, name the files that hold them with --data."


def example_table(
    run: Run, before: Run | None, *, redact: bool, data: Sequence[str | Path | DataSource] = ()
) -> Table | None:
    """Each example's scores before and after unlearning, the least forgotten first.

    Args:
        run: the run.
        before: the target's run, or None.
        redact: leave out text even if the evaluation kept it.
        data: files with the questions and the answers on record.

    Returns:
        The table, or None if there are no scores of single examples.

    Raises:
        UserError: a data file does not exist or cannot be read.
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
    answers = TEXT in own and not redact
    texts = {} if redact else _texts(data)
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
        if texts:
            cells += [Cell(text) for text in texts.get(key[1].partition("#")[0], ("–", "–"))]
        if answers:
            cells += [Cell(_answer(frame, key)) for frame in (earlier, own) if frame is not None]
        rows.append(cells)
    moments = ["before", "after"] if earlier is not None else ["after"]
    head = ["example", "set", *(f"{metric}, {moment}" for metric in metrics for moment in moments)]
    numeric = [False, False] + [True] * (len(head) - 2)
    if texts:
        head += ["question", "answer on record"]
    if answers:
        head += [f"the model says, {moment}" for moment in moments]
    numeric += [False] * (len(head) - len(numeric))
    note = "" if answers and texts else _QUESTIONS if answers else _REDACTED
    if len(order) > _MOST:
        note = f"The first {_MOST} of {len(order)} examples; the run folder holds all of them. {note}"
    return Table(
        "examples", "Every example, the least forgotten first", head, rows, note, numeric, answers or bool(texts)
    )


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


def _texts(data: Sequence[str | Path | DataSource]) -> dict[str, tuple[str, str]]:
    """Example id → question and answer, read from files that exist here; never from the hub."""
    from llm_forget.data.examples import DataSource, read_examples

    found: dict[str, tuple[str, str]] = {}
    for given in data:
        source = given if isinstance(given, DataSource) else DataSource(str(given))
        if not Path(source.path).expanduser().exists():
            raise UserError(f"--data {source.path} does not exist; give a file with the questions of the evaluation")
        for example in read_examples(source):
            asked = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
            found[example.id] = (asked, example.answer)
    return found
