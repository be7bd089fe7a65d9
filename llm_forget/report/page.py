"""One HTML page for a run or a comparison: a single file, no network, no text of the forget set unless it was allowed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget._version import __version__
from llm_forget.errors import UserError
from llm_forget.report import words
from llm_forget.report.examples import example_table
from llm_forget.report.tables import Table, metric_table, runs_table
from llm_forget.runs import Run, find_runs, frame_of
from llm_forget.runs.comparison import compare, metrics_of, pareto
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import write_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Figure:
    """A plot on the page.

    Attributes:
        id: of its element.
        data: plotly's JSON, safe inside a script element.
        height: in pixels, kept free before it is drawn.
        caption: what it shows and how to read it.
    """

    id: str
    data: str
    height: int
    caption: str


@dataclass(frozen=True)
class Story:
    """What the page says of one run."""

    run: Run
    role: str
    verdict: words.Words
    conclusions: list[str] = field(default_factory=list)
    figure: Figure | None = None


def write_report(
    path: str | Path,
    to: Path | None = None,
    *,
    target: str | Path | None = None,
    oracle: str | Path | None = None,
    redact: bool = False,
) -> Path:
    """The page of one run.

    Args:
        path: the run folder.
        to: the file to write; ``report.html`` in the run folder by default.
        target: the run of the model before unlearning; by default looked for beside the run.
        oracle: the run of the model that never saw the forget set; by default looked for beside the run.
        redact: leave out text even where the evaluation kept it.

    Returns:
        The file.

    Raises:
        UserError: no complete run there, or a package is missing.
    """
    folder = Path(path)
    runs, _ = find_runs([folder, *(Path(one) for one in (target, oracle) if one is not None)])
    if not runs or runs[0].path != folder:
        find = find_runs(folder)[1].get(str(folder), "holds no run; to put several on one page use llm-forget compare")
        raise UserError(f"{folder}: {find}")
    run = runs[0]
    around = _with_siblings(runs, folder)
    frame = frame_of(around, suite=_suite_of(run))
    names = {role: _named(frame, around, given, role) for role, given in (("target", target), ("oracle", oracle))}
    if names["target"] == run.name:
        names["target"] = None
    shown = [run.name, *(name for name in names.values() if name and name != run.name)]
    frame = _only(frame, list(dict.fromkeys(shown)))
    by_name = {one.name: one for one in around}
    before = by_name[names["target"]] if names["target"] else None
    changes = None if before is None else compare(frame, before.name)
    story = _story(run, frame, changes, names["target"], names["oracle"])
    figures = _Figures()
    figures.add(
        _training_figure(run), "Each point is a measurement on the run's own samples. Dotted: the goal and the floor."
    )
    suite = run.suite()
    for part in suite.forget_sets if suite else ():
        figures.add(
            partial(_plots().example_change, run, before, part=part),
            "One column an example. A point that stays high was not forgotten, whatever the mean says.",
        )
    figures.add(lambda: _trade(frame), _TRADE_CAPTION)
    figures.add(lambda: _plots().cost_bar(frame), _COST_CAPTION)
    page = _render(
        title=f"Unlearning report: {run.name}",
        stories=[story],
        tables=[metric_table(frame, changes, run.name, names["target"], names["oracle"])],
        examples=example_table(run, before, redact=redact),
        figures=figures.made,
        frame=frame,
        main=run,
    )
    file = to or folder / "report.html"
    write_text(file, page)
    return file


def write_comparison(
    paths: Sequence[str | Path], to: Path, *, baseline: str | None = None
) -> tuple[Path, pd.DataFrame]:
    """The page of several runs.

    Args:
        paths: run folders, or folders that hold some.
        to: the file to write.
        baseline: a run's name or role; by default the target, where there is one.

    Returns:
        The file, and the table of the runs (``load_runs``).

    Raises:
        UserError: no run was found, no such baseline, or a package is missing.
    """
    runs, skipped = find_runs(paths)
    frame = frame_of(runs, skipped)
    if not runs:
        raise UserError(f"no run found in {', '.join(map(str, paths))}; give run folders, for example runs/*")
    target = find_baseline(frame, baseline)
    oracle = _one(frame, "oracle")
    changes = None if target is None else compare(frame, target)
    figures = _Figures()
    figures.add(lambda: _trade(frame), _TRADE_CAPTION)
    figures.add(lambda: _plots().cost_bar(frame), _COST_CAPTION)
    stories = []
    for run in runs:
        if frame.loc[run.name, "role"] == "unlearned":
            made = figures.make(_training_figure(run), "Dotted: the goal and the floor of the run.")
            stories.append(_story(run, frame, changes, target, oracle, made))
    page = _render(
        title=f"Comparison of {len(runs)} runs",
        stories=stories,
        tables=runs_table(frame, target, oracle),
        examples=None,
        figures=figures.made,
        frame=frame,
        main=None,
    )
    write_text(to, page)
    return to, frame


def find_baseline(frame: pd.DataFrame, wanted: str | None) -> str | None:
    """The row that others are compared with: the one asked for, or the only target."""
    from llm_forget.runs.comparison import find_row

    return _one(frame, "target") if wanted is None else find_row(frame, wanted)


_TRADE_CAPTION = (
    "Towards the oracle is forgotten, up is kept; whiskers are 95 % intervals over examples. "
    "Ringed: runs that no other beats on both counts."
)
_COST_CAPTION = "Wall time of each run on its machine, from loading the model."


def _plots() -> Any:
    from llm_forget.report import plots

    return plots


def _trade(frame: pd.DataFrame) -> Any:
    axes = _plots().metrics_to_plot(frame)
    if axes is None or len(frame) < 2:
        raise UserError("nothing to draw")
    return _plots().forget_vs_utility(frame, forget=axes[0], utility=axes[1])


def _training_figure(run: Run) -> Callable[[], Any]:
    return lambda: _plots().training_curves(run)


class _Figures:
    """The figures of a page; one that the runs hold nothing for is left out."""

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
        # "<" as an escape: nothing in the data can end the script element
        data = figure.to_json().replace("<", "\\u003c")
        return Figure(f"figure-{self._count}", data, int(figure.layout.height), caption)


def _with_siblings(runs: list[Run], folder: Path) -> list[Run]:
    """The run, those given, and those that lie beside it: target and oracle are usually among them."""
    beside, _ = find_runs([path for path in sorted(folder.resolve().parent.iterdir()) if path.is_dir()])
    known = {run.path.resolve() for run in runs}
    names = {run.name for run in runs}
    return [*runs, *(run for run in beside if run.path.resolve() not in known and run.name not in names)]


def _suite_of(run: Run) -> str | None:
    found = run.suite()
    return found.suite if found else None


def _named(frame: pd.DataFrame, runs: Sequence[Run], given: str | Path | None, role: str) -> str | None:
    if given is not None:
        return next(run.name for run in runs if run.path.resolve() == Path(given).resolve())
    return _one(frame, role)


def _one(frame: pd.DataFrame, role: str) -> str | None:
    found = list(frame.index[frame["role"] == role])
    return str(found[0]) if len(found) == 1 else None


def _only(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    attrs = frame.attrs
    frame = frame.loc[names].dropna(axis="columns", how="all")
    frame.attrs = attrs
    return frame


def _story(
    run: Run,
    frame: pd.DataFrame,
    changes: pd.DataFrame | None,
    target: str | None,
    oracle: str | None,
    figure: Figure | None = None,
) -> Story:
    verdict = words.judge(frame, changes, run.name, target, oracle)
    suite = run.suite()
    return Story(
        run, str(frame.loc[run.name, "role"]), verdict, list(suite.raw.get("verdict") or []) if suite else [], figure
    )


def _render(
    *,
    title: str,
    stories: list[Story],
    tables: list[Table],
    examples: Table | None,
    figures: list[Figure],
    frame: pd.DataFrame,
    main: Run | None,
) -> str:
    require_extra("jinja2", "a report", "report")
    require_extra("plotly", "a report", "report")
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("llm_forget.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _plain, "breakable": _breakable}
    source = environment.loader.get_source  # type: ignore[union-attr]
    drawn = [*figures, *(story.figure for story in stories if story.figure)]
    suites = [found for story in stories if (found := story.run.suite())]
    return environment.get_template("page.html.j2").render(
        title=title,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        stories=stories,
        tables=tables,
        examples=examples,
        figures=figures,
        front=_front(frame) if main is None else [],
        skipped=frame.attrs["skipped"] if main is None else {},
        problems=frame.attrs["problems"],
        main=main,
        recipe=_flat(main.recipe) if main else [],
        environment=_flat(main.environment) if main else [],
        digests=_digests(main) if main else [],
        costs=_costs(frame),
        counts=_counts(frame),
        relearned=any(word in suite.raw for suite in suites for word in ("attacks", "privleak", "leak")),
        rule=words.RULE,
        has_oracle=_one(frame, "oracle") is not None,
        hands_over=[story.run for story in stories if (story.run.path / "adapter").is_dir()],
        # the three below are ours, or numbers whose "<" is escaped
        css=Markup(source(environment, "page.css")[0]),
        script=Markup(source(environment, "page.js")[0]),
        plotly=Markup(get_plotlyjs()) if drawn else "",
        data={figure.id: Markup(figure.data) for figure in drawn},
    )


def _front(frame: pd.DataFrame) -> list[str]:
    axes = _plots().metrics_to_plot(frame)
    return [] if axes is None else list(map(str, pareto(frame, forget=axes[0], utility=axes[1]).index))


def _counts(frame: pd.DataFrame) -> dict[str, int]:
    """Set → how many questions, of what was measured."""
    counts: dict[str, int] = {}
    for metric in metrics_of(frame):
        column = f"{metric}.n"
        if metric.endswith((".probability", ".acc")) and column in frame and frame[column].notna().any():
            counts[metric.rpartition(".")[0]] = int(frame[column].max())
    return counts


def _costs(frame: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    oracle = _one(frame, "oracle")
    cost = frame.loc[oracle, "seconds"] if oracle else None
    rows = []
    for name, row in frame.iterrows():
        if row["seconds"] == row["seconds"]:
            times = f"{row['seconds'] / cost:.2f}" if cost else "–"
            rows.append((str(name), f"{row['seconds']:.0f}", times, _plain(row.get("steps"))))
    return rows


def _digests(run: Run) -> list[tuple[str, str]]:
    found = {"base model's weights": run.result.get("base_digest")}
    found |= {f"{name} data (ids)": digest for name, digest in (run.result.get("data_digests") or {}).items()}
    for suite, results in run.evaluations.items():
        found |= {f"{name} questions of the suite {suite} (ids)": digest for name, digest in results.digests.items()}
    return [(name, str(digest)) for name, digest in found.items() if digest]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            rows += _flat(item, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _plain(item)))
    return rows


def _breakable(name: str) -> Any:
    """A long name that may be broken after its dots and underscores."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._/])", name))


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping) else str(value)
