"""Plotly figures for notebooks and reports. They show numbers, names and ids, and no text of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_forget.errors import UserError
from llm_forget.runs.comparison import DEFAULT_FORGET, DEFAULT_UTILITY, check_column, find_row, metrics_of, pareto
from llm_forget.utils.extras import require_extra
from llm_forget.utils.terminal import clean

if TYPE_CHECKING:
    import pandas as pd

    from llm_forget.runs import Run

# The palette of Okabe and Ito for colour-blind readers, darkened to a contrast of 3:1 against white.
_BLUE, _ORANGE, _GREEN, _GREY, _PURPLE = "#0072B2", "#C04A00", "#007A5A", "#5F6670", "#9B4F7E"
_MARKERS: dict[str, dict[str, Any]] = {
    "unlearned": {"symbol": "circle", "color": _BLUE, "size": 12},
    "target": {"symbol": "diamond", "color": _ORANGE, "size": 13},
    "oracle": {"symbol": "star", "color": _GREEN, "size": 17},
}
_OTHER = {"symbol": "square", "color": _PURPLE, "size": 11}
_NAMES = {"unlearned": "unlearned", "target": "target (before)", "oracle": "oracle (never saw it)"}


def forget_vs_utility(frame: pd.DataFrame, *, forget: str = DEFAULT_FORGET, utility: str = DEFAULT_UTILITY) -> Any:
    """Plot a forget metric against a utility metric, with intervals, the oracle and the Pareto front.

    Args:
        frame: from ``load_runs``.
        forget: the horizontal axis.
        utility: the vertical axis; more is better.

    Returns:
        A ``plotly.graph_objects.Figure``.

    Raises:
        UserError: an unknown column, no run that has both, or plotly is missing.
    """
    go = _plotly()
    for column in (forget, utility):
        check_column(frame, column)
    rows = frame.dropna(subset=[forget, utility])
    if rows.empty:
        raise UserError(f"no run has both {forget} and {utility}; evaluate them on one suite")
    figure = go.Figure()
    front = pareto(rows, forget=forget, utility=utility) if (rows["role"] == "unlearned").any() else rows[:0]
    if len(front):
        figure.add_scatter(
            x=front[forget], y=front[utility], mode="lines+markers", name="Pareto front", hoverinfo="skip",
            line={"color": _BLUE, "width": 1.5, "dash": "dot"},
            marker={"symbol": "circle-open", "size": 21, "color": _BLUE, "line": {"width": 1.5}},
        )  # fmt: skip
    places = _text_places(rows, forget, utility)
    x_title, y_title = _shown(forget), _shown(utility)
    for role in sorted(rows["role"].unique(), key=lambda one: [*_MARKERS, one].index(one)):
        part = rows[rows["role"] == role]
        figure.add_scatter(
            x=part[forget], y=part[utility], mode="markers+text", name=_NAMES.get(role, role),
            text=[_shown(str(name).rsplit("/", 1)[-1]) for name in part.index],
            textposition=[places[name] for name in part.index], cliponaxis=False, textfont={"size": 13},
            marker={**_MARKERS.get(role, _OTHER), "line": {"width": 1, "color": "white"}},
            error_x=_error_bars(part, forget), error_y=_error_bars(part, utility),
            customdata=list(map(_shown, part.index)),
            hovertemplate=f"<b>%{{customdata}}</b><br>{x_title} %{{x:.3f}}<br>{y_title} %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    return _styled(figure, "Forgetting and utility", height=470)


def training_curves(run: Run, *, band: tuple[float, float] | None = None) -> Any:
    """Plot forget and retain probability at each check with the forget target and the utility floor, and the losses.

    Args:
        run: the run.
        band: the interval of the oracle's forget probability, drawn behind the curves.

    Raises:
        UserError: the run logged no steps, or plotly is missing.
    """
    go = _plotly()
    from plotly.subplots import make_subplots

    curves, checks = run.curves(), run.checks()
    if curves.empty and checks.empty:
        raise UserError(f"{run.name} has no metrics.jsonl with steps; only unlearning runs write one")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.6, 0.4], vertical_spacing=0.09)
    for column, color, dash, name in (
        ("forget", _ORANGE, "solid", "forget probability"),
        ("retain", _BLUE, "dash", "retain probability"),
        ("neighbour", _PURPLE, "dashdot", "neighbours' probability"),
    ):
        if column in checks and checks[column].notna().any():
            figure.add_trace(
                go.Scatter(
                    x=checks["step"], y=checks[column], mode="lines+markers", name=name, customdata=checks["order"],
                    line={"color": color, "dash": dash},
                    hovertemplate=f"step %{{x}}, check %{{customdata}}<br>{name} %{{y:.3f}}<extra></extra>",
                ), row=1, col=1,
            )  # fmt: skip
    if band is not None:
        figure.add_hrect(y0=band[0], y1=band[1], fillcolor=_GREEN, opacity=0.18, line_width=0, row=1, col=1)
        figure.add_annotation(
            x=1, xref="x domain", y=band[1], text="oracle", showarrow=False, xanchor="right", yanchor="bottom",
            font={"color": _GREEN, "size": 12}, row=1, col=1,
        )  # fmt: skip
    goals = (("forget_target", "forget target", _ORANGE), ("utility_floor", "utility floor", _BLUE))
    for key, label, color in goals:
        if run.result.get(key) is not None:
            figure.add_hline(
                y=run.result[key], line={"color": color, "dash": "dot", "width": 1.2}, row=1, col=1,
                annotation={"text": label, "font": {"color": color, "size": 12}},
                annotation_position="top left" if key == "forget_target" else "bottom left",
            )  # fmt: skip
    for column, color, dash in (("forget_loss", _ORANGE, "solid"), ("retain_loss", _BLUE, "dash")):
        if column in curves:
            name = column.replace("_", " ")
            figure.add_trace(
                go.Scatter(
                    x=curves["step"], y=curves[column], mode="lines", name=name, line={"color": color, "dash": dash},
                    hovertemplate=f"step %{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
                ), row=2, col=1,
            )  # fmt: skip
    figure.update_yaxes(title="probability", range=[0, 1.02], row=1, col=1)
    figure.update_yaxes(title="loss", row=2, col=1)
    figure.update_xaxes(title="optimiser step, all phases", row=2, col=1)
    return _styled(figure, f"Training of {_shown(run.name)}", height=560)


def example_change(run: Run, before: Run | None = None, *, part: str = "forget", metric: str = "probability") -> Any:
    """Plot each example's score before and after, the highest first: a mean can hide a few that were not forgotten.

    Args:
        run: the run.
        before: the target's run; without it only the scores after unlearning are drawn.
        part: the set.
        metric: the metric.

    Raises:
        UserError: the run was not measured on that set, or plotly is missing.
    """
    go = _plotly()
    after = _scores_by_id(run, part, metric)
    if after is None:
        raise UserError(f"{run.name} has no {metric} for single {part} examples; run llm-forget evaluate on it")
    after = after.sort_values(ascending=False)
    places = list(range(1, len(after) + 1))
    figure = go.Figure()
    earlier = None if before is None else _scores_by_id(before, part, metric)
    if earlier is not None:
        earlier = earlier.reindex(after.index)
        # one trace of broken lines, because hundreds of shapes are slow
        x = [value for place in places for value in (place, place, None)]
        y = [value for pair in zip(earlier, after, strict=True) for value in (*pair, None)]
        figure.add_scatter(
            x=x, y=y, mode="lines", line={"color": "#B8BEC6", "width": 1.5}, hoverinfo="skip", showlegend=False
        )
    label, examples = _shown(metric), f"{_shown(part)} examples"
    hover = f"example %{{customdata}}<br>%{{fullData.name}}: {label} %{{y:.3f}}<extra></extra>"
    drawn = [("before", earlier, _ORANGE, "diamond-open"), ("after", after, _BLUE, "circle")]
    for name, values, color, symbol in drawn:
        if values is not None:
            figure.add_scatter(
                x=places, y=values, mode="markers", name=name, customdata=list(map(_shown, after.index)), hovertemplate=hover,
                marker={"color": color, "symbol": symbol, "size": 8},
            )  # fmt: skip
    figure.update_xaxes(title=f"{examples}, the least forgotten first" if part == "forget" else examples)
    figure.update_xaxes(tickformat="d", dtick=1 if len(places) <= 20 else None)
    figure.update_yaxes(title=label)
    return _styled(figure, f"{_shown(part)}: {label} of every example", height=400)


def cost_bar(frame: pd.DataFrame, *, oracle: str | None = None) -> Any:
    """Plot the seconds of each run, compared with the oracle's.

    Args:
        frame: from ``load_runs``.
        oracle: the oracle's row; by default the one row with that role.

    Raises:
        UserError: no run has a recorded time, or plotly is missing.
    """
    go = _plotly()
    check_column(frame, "seconds")
    rows = frame.dropna(subset=["seconds"]).sort_values("seconds", ascending=False)
    if rows.empty:
        raise UserError("no run has a recorded time")
    oracles = [find_row(frame, oracle)] if oracle else list(frame.index[frame["role"] == "oracle"])
    cost = float(frame["seconds"][oracles[0]]) if len(oracles) == 1 else None
    times = [f"{value / cost:.2f} × oracle" if cost else f"{value:.0f} s" for value in rows["seconds"]]
    figure = go.Figure()
    figure.add_bar(
        x=rows["seconds"], y=list(map(_shown, rows.index)), orientation="h", text=times, textposition="auto",
        marker={"color": [_MARKERS.get(role, _OTHER)["color"] for role in rows["role"]]},
        hovertemplate="%{y}: %{x:.0f} s (%{text})<extra></extra>",
    )  # fmt: skip
    if cost is not None:
        figure.add_vline(x=cost, line={"color": _GREEN, "dash": "dot"})
    figure.update_xaxes(title="seconds, loading included", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return _styled(figure, "Cost of each run", height=150 + 44 * len(rows))


def metrics_to_plot(frame: pd.DataFrame) -> tuple[str, str] | None:
    """The forget metric and the utility metric to plot by default; None if the table lacks either."""
    have = metrics_of(frame)
    directions = frame.attrs.get("directions", {})
    forgets = [DEFAULT_FORGET, *(name for name in have if directions.get(name) in ("low", "high"))]
    kept = [DEFAULT_UTILITY, *(name for name in have if name.startswith(("model_utility.", "retain.", "capability.")))]
    pairs = [(one, other) for one in forgets for other in kept if {one, other} <= set(have)]
    return next((pair for pair in pairs if not frame.dropna(subset=list(pair)).empty), None)


def _shown(name: object) -> str:
    """A name from outside as plotly shows it: plotly reads tags, entities and ``%{...}`` in every text."""
    text = clean(name, lines=False)
    for one, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("%", "&#37;"), ("$", "&#36;")):
        text = text.replace(one, entity)
    return text


def _plotly() -> Any:
    require_extra("plotly", "a figure", "report")
    import plotly.graph_objects as go

    return go


def _scores_by_id(run: Run, part: str, metric: str) -> pd.Series | None:
    found = run.suite()
    rows = None if found is None else found.examples()
    if rows is None or metric not in rows or not (rows["set"] == part).any():
        return None
    return rows[rows["set"] == part].set_index("id")[metric].dropna()


def _error_bars(rows: pd.DataFrame, column: str) -> dict[str, Any] | None:
    low, high = f"{column}.low", f"{column}.high"
    if low not in rows or high not in rows:
        return None
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
        "array": rows[high] - rows[column], "arrayminus": rows[column] - rows[low],
    }  # fmt: skip


def _text_places(rows: pd.DataFrame, x: str, y: str) -> dict[str, str]:
    """The corner for each point's name: of four, the one where it overlaps the fewest points, names and edges."""

    def scaled(column: str) -> list[float]:
        drawn = rows[[name for name in (column, f"{column}.low", f"{column}.high") if name in rows]]
        low, high = drawn.min().min(), drawn.max().max()  # the axis extends to the ends of the intervals
        return [float(value - low) / float(high - low) if high > low else 0.5 for value in rows[column]]

    points = dict(zip(map(str, rows.index), zip(scaled(x), scaled(y), strict=True), strict=True))
    taken = [(px - 0.01, py - 0.02, px + 0.01, py + 0.02) for px, py in points.values()]
    places = {}
    for name, (px, py) in points.items():
        width, height = 0.03 * len(name.rsplit("/", 1)[-1]), 0.09  # for 13-pixel text on a narrow plot, 350 pixels high
        boxes = {
            f"{row} {side}": (left, bottom, left + width, bottom + height)
            for row, bottom in (("top", py + 0.02), ("bottom", py - 0.02 - height))
            for side, left in (("right", px + 0.01), ("left", px - 0.01 - width))
        }

        def cost(place: str, boxes: Mapping[str, tuple[float, ...]] = boxes) -> int:
            box = boxes[place]
            outside = box[0] < 0 or box[2] > 1  # over the axis labels, or beyond the page
            return outside + sum(_overlap(box, other) for other in taken)

        places[name] = min(boxes, key=cost)
        taken.append(boxes[places[name]])
    return places


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _styled(figure: Any, title: str, height: int) -> Any:
    figure.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0, "xanchor": "left", "xref": "paper", "font": {"size": 17}},
        height=height,
        margin={"l": 60, "r": 24, "t": 56, "b": 60},
        font={"size": 13, "color": "#1b1f24", "family": "system-ui, sans-serif"},
        # below the plot: above it, a second line would cover points on a narrow screen
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yanchor": "bottom", "yref": "container"},
        hoverlabel={"bgcolor": "white"},
    )
    return figure
