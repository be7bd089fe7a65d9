"""Tables of texts and numbers that may come from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_forget.utils.extras import require_extra

if TYPE_CHECKING:
    import pandas as pd


def make_frame(
    rows: Sequence[dict[str, Any]], *, index: dict[str, list[str]] | None = None, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """A table whose texts are Python objects: a folder's name that is not UTF-8 does not fit into a string of Arrow.

    Args:
        rows: one mapping of column to value for each row.
        index: name of each level of the index → its values; None numbers the rows.
        columns: the columns; by default those of the rows.
    """
    require_extra("pandas", "a table of runs", "report")
    import pandas as pd

    with pd.option_context("future.infer_string", False):
        levels = [pd.Index(values, dtype=object, name=name) for name, values in (index or {}).items()]
        made: Any = None
        if levels:
            made = levels[0] if len(levels) == 1 else pd.MultiIndex.from_arrays(levels)
        return pd.DataFrame(list(rows), index=made, columns=None if columns is None else list(columns))
