"""Read run folders as tables, compare them, and find the Pareto front."""

from llm_forget.runs.comparison import check_column, compare, metrics_of, pareto
from llm_forget.runs.load import Run, find_runs, flatten, frame_of, load_run, load_runs

__all__ = [
    "Run",
    "check_column",
    "compare",
    "find_runs",
    "flatten",
    "frame_of",
    "load_run",
    "load_runs",
    "metrics_of",
    "pareto",
]
