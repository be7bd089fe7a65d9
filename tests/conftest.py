"""How the tests are divided among pytest-xdist's workers: a file to a worker, for its fixtures' sake.

Files that start groups of processes share one worker: accelerate's launchers take a fixed port, and two groups at once would
meet there.
"""

from __future__ import annotations

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scheduler that hands out whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "several processes" if PurePosixPath(file).name in _SEVERAL_PROCESSES else file

    return ByFile(config, log)
