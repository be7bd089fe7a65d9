"""Paths for all tests."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]  # root of the project
SHARED = ROOT.parent / "shared"  # optional data for development
