"""Where the tests run: those marked gpu on a card, by ``-m gpu``, and all others on the CPU, also where there is a card.

pytest-xdist divides them by file, for the fixtures' sake. Files that start groups of processes share one worker: accelerate's
launchers take a fixed port, and two groups at once would meet there.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import pytest

_SEVERAL_PROCESSES = {
    "test_methods_on_two_processes.py",
    "test_processes.py",
    "test_shards.py",
    "test_two_processes.py",
    "test_two_processes_methods.py",
}


def pytest_configure(config: pytest.Config) -> None:
    """Hide the card from tests that compare bit for bit, fork, or hold models on the CPU; before anything asks for it."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scheduler that hands out whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "several processes" if PurePosixPath(file).name in _SEVERAL_PROCESSES else file

    return ByFile(config, log)
