"""HTML pages for one run or a comparison: a single file that opens offline."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget._version import __version__
from llm_forget.errors import UserError
from llm_forget.evaluation.verdict import RULE, Verdict
from llm_forget.report import plots
from llm_forget.report.audit import audit_story, audits_table
from llm_forget.report.comparison import Comparison, load_around, only_run_with
from llm_forget.report.examples import example_table
from llm_forget.report.search import again_table, search_table
from llm_forget.report.tables import Table, metric_table, runs_table
from llm_forget.runs import Run, flatten
from llm_forget.runs.comparison import metrics_of, pareto
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import write_text
from llm_forget.utils.terminal import clean

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment

    from llm_forget.data.examples import DataSource

_TRADE_CAPTION = (
    "Closer to the oracle, or further left without one, means more is forgotten. Further up means more is kept. Whiskers are "
    "95 % intervals over examples. Rings mark runs that no other run beats in both."
)
_COST_CAPTION = "Wall-clock time of each run, with loading the model."
_CURVES_CAPTION = "Measured on the run's own samples. Dotted lines: the forget target and the utility floor."
_EXAMPLES_CAPTION = "Each column is one example. One that stays high was not forgotten, even if the mean is low."


@dataclass(frozen=True)
class Figure:
    """A plot on the page.

    Attributes:
        id: id of its element.
        data: plotly's JSON, safe inside a script element.
        height: pixels reserved for it.
        caption: what it shows and how to read it.
    """

    id: str
    data: str
    height: int
    caption: str


@dataclass(frozen=True)
class Story:
    """The part of the page about one run."""

    run: Run
    verdict: Verdict
    figure: Figure | None = None


def write_report(
    path: str | Path,
    to: Path | None = None,
    *,
    target: str | Path | None = None,
    oracle: str | Path | None = None,
    data: Sequence[str | Path | DataSource] = (),
    redact: bool = False,
) -> Path:
    """Write the page of one run.

    Args:
        path: the run folder.
        to: the file to write; ``report.html`` in the run folder by default.
        target: the run of the model before unlearning; by default a sibling of the run folder.
        oracle: the run of the model that never saw the forget set; by default a sibling of the run folder.
        data: files with the questions and answers to show next to the scores. No other file and no hub is read for them:
            the run may come from somebody else, and its recipe may name any file of this machine.
        redact: leave out text even if the evaluation kept it.

    Returns:
        The file.

    Raises:
        UserError: there is no complete run, or a package is missing.
    """
    folder = Path(path)
    return write_report_of(load_around(folder, target, oracle), to or folder / "report.html", data=data, redact=redact)


def write_report_of(
    found: Comparison, to: Path, *, data: Sequence[str | Path | DataSource] = (), redact: bool = False
) -> Path:
    """Write the page of one run.

    Args:
        found: the run, from ``load_around``.
        to: the file to write.
        data: files with the questions and answers to show next to the scores. No other file and no hub is read for them: the
            run may come from somebody else, and its recipe may name any file of this machine.
        redact: leave out text even if the evaluation kept it.

    Returns:
        The file.

    Raises:
        UserError: a package is missing, or a data file cannot be read.
    """
    run, frame = found.runs[0], found.frame
    before = None if found.target == run.name else found.run(found.target)
    changes = None if before is None else found.changes()
    figures = _Figures()
    figures.add(partial(plots.training_curves, run), _CURVES_CAPTION)
    suite = run.suite()
    for part in suite.forget_sets if suite else ():
        figures.add(partial(plots.example_change, run, before, part=part), _EXAMPLES_CAPTION)
    figures.add(lambda: _trade(frame), _TRADE_CAPTION)
    figures.add(lambda: plots.cost_bar(frame), _COST_CAPTION)
    page = _render(
        title=f"Unlearning report: {run.name}",
        stories=[Story(run, found.verdict(run))],
        tables=[
            metric_table(frame, changes, run.name, before.name if before else None, found.oracle),
            *filter(None, [search_table(run), again_table(run)]),
        ],
        examples=example_table(run, before, data=data, redact=redact),
        figures=figures.made,
        frame=frame,
        main=run,
        notes=found.notes,
    )
    return _written(to, page)


def write_comparison(found: Comparison, to: Path) -> Path:
    """Write the page of several runs.

    Args:
        found: the runs, from ``load_comparison``.
        to: the file to write.

    Returns:
        The file.

    Raises:
        UserError: a package is missing, or the file cannot be written.
    """
    figures = _Figures()
    figures.add(lambda: _trade(found.frame), _TRADE_CAPTION)
    figures.add(lambda: plots.cost_bar(found.frame), _COST_CAPTION)
    stories = [
        Story(run, found.verdict(run), figures.make(partial(plots.training_curves, run), _CURVES_CAPTION))
        for run in found.unlearned()
    ]
    page = _render(
        title=f"Comparison of {len(found.runs)} runs",
        stories=stories,
        tables=runs_table(found.frame, found.oracle),
        examples=None,
        figures=figures.made,
        frame=found.frame,
        main=None,
        notes=found.notes,
    )
    return _written(to, page)


def _written(to: Path, page: str) -> Path:
    try:
        write_text(to, page)
    except OSError as error:
        raise UserError(f"{to} cannot be written: {error.strerror}; name another file with --to") from None
    return to


def _trade(frame: pd.DataFrame) -> Any:
    axes = plots.metrics_to_plot(frame)
    if axes is None or len(frame) < 2:
        raise UserError("there is nothing to draw")
    return plots.forget_vs_utility(frame, forget=axes[0], utility=axes[1])


class _Figures:
    """The figures of a page. A figure is left out if the runs lack its data."""

    def __init__(self) -> None:
        self.made: list[Figure] = []
        self._count = 0

    def add(self, draw: Callable[[], Any], caption: str) -> None:
        found = self.make(draw, caption)
        if found is not None:
            self.made.append(found)

    def make(self, draw: Callable[[], Any], caption: str) -> Figure | None:
        try:
            figure = draw()
        except UserError:
            return None
        self._count += 1
        # "<" is escaped, so nothing in the data can end the script element
        data = figure.to_json().replace("<", "\\u003c")
        return Figure(f"figure-{self._count}", data, int(figure.layout.height), caption)


def _render(
    *,
    title: str,
    stories: list[Story],
    tables: list[Table],
    examples: Table | None,
    figures: list[Figure],
    frame: pd.DataFrame,
    main: Run | None,
    notes: list[str],
) -> str:
    require_extra("jinja2", "a report", "report")
    require_extra("plotly", "a report", "report")
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = _templates()
    source = templates.loader.get_source  # type: ignore[union-attr]
    drawn = [*figures, *(story.figure for story in stories if story.figure)]
    suites = [found for story in stories if (found := story.run.suite())]
    return templates.get_template("page.html.j2").render(
        title=title,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        stories=stories,
        tables=tables,
        examples=examples,
        figures=figures,
        audit=None if main is None else audit_story(main),
        audits=audits_table([story.run for story in stories]) if main is None else None,
        front=_front(frame) if main is None else [],
        skipped=frame.attrs["skipped"] if main is None else {},
        notes=notes,
        main=main,
        recipe=flatten(main.recipe) if main else {},
        environment=flatten(main.environment) if main else {},
        digests=_digests(main) if main else {},
        costs=_costs(frame),
        counts=_counts(frame),
        attacked=any(suite.raw.get(word) for suite in suites for word in ("attacks", "privleak", "leak")),
        rule=RULE,
        has_oracle=only_run_with(frame, "oracle") is not None,
        hands_over=[story.run for story in stories if (story.run.path / "adapter").is_dir()],
        # these are ours, or numbers whose "<" is escaped
        css=Markup(source(templates, "page.css")[0]),
        script=Markup(source(templates, "page.js")[0]),
        plotly=Markup(get_plotlyjs()) if drawn else "",
        data={figure.id: Markup(figure.data) for figure in drawn},
    )


@cache
def _templates() -> Environment:
    """The page's templates, compiled once in a process."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("llm_forget.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"value": _shown, "breakable": _breakable}
    return found


def _front(frame: pd.DataFrame) -> list[str]:
    axes = plots.metrics_to_plot(frame)
    return [] if axes is None else list(map(str, pareto(frame, forget=axes[0], utility=axes[1]).index))


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    """Set or test → number of questions."""
    counts: dict[str, int] = {}
    for metric in metrics_of(frame):
        column = f"{metric}.n"
        if metric.endswith((".probability", ".acc")) and column in frame and frame[column].notna().any():
            counts[metric.rpartition(".")[0]] = int(frame[column].max())
    return counts


def _costs(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Run, seconds, multiple of the oracle's seconds, and steps."""
    oracle = only_run_with(frame, "oracle")
    known = frame[frame["seconds"].notna()]  # results of another tool may state none
    cost = known["seconds"].get(oracle) if oracle else None
    rows = []
    for name, row in known.iterrows():
        times = f"{row['seconds'] / cost:.2f}" if cost else "–"
        rows.append((str(name), f"{row['seconds']:.0f}", times, _shown(row.get("steps"))))
    return rows


def _digests(run: Run) -> dict[str, str]:
    found = {"base model's weights": run.result.get("base_digest")}
    found |= {f"{name} data (ids)": digest for name, digest in (run.result.get("data_digests") or {}).items()}
    for suite, results in run.evaluations.items():
        found |= {f"{name} questions of the suite {suite} (ids)": digest for name, digest in results.digests.items()}
    return {name: str(digest) for name, digest in found.items() if digest}


def _visible(value: Any) -> Any:
    """A text of the page without control characters; our own markup stays."""
    from markupsafe import Markup

    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Any:
    """Allow line breaks after the dots and underscores of a long name."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._/])", clean(name, lines=False)))


def _shown(value: Any) -> str:
    """Any value of a recipe or record as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or value in ([], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 1 else f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping) else str(value)
