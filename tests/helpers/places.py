"""Where things are, for tests in any room."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]  # the project
SHARED = ROOT.parent / "shared"  # data for development, which need not be there
