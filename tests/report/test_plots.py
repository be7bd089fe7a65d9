"""Test the placement of point labels in plots."""

from __future__ import annotations

import pandas as pd

from llm_forget.report.plots import _text_places


def test_labels_of_close_points_are_in_different_corners() -> None:
    """Two points are close to each other; one is at the right edge, so its label must be on the left."""
    rows = pd.DataFrame({"x": [0.04, 0.06, 0.9], "y": [0.894, 0.9, 0.87]}, index=["grad_diff", "npo", "target"])
    rows["y.low"], rows["y.high"] = rows["y"] - 0.03, rows["y"] + 0.03
    places = _text_places(rows, "x", "y")
    assert places["grad_diff"] != places["npo"]
    assert places["target"].endswith("left")
