"""How the tests are divided among pytest-xdist's workers: a file to a worker, for its fixtures' sake.

Files that start groups of processes share one worker: accelerate's launchers take a fixed port, and two groups at once would
meet there.
"""

from __future__ import annotations

import pytest

_SEVERAL_PROCESSES = {
    "test_methods_on_two_processes.py",
    "test_processes.py",
    "test_shards.py",
    "test_two_processes.py",
    "test_two_processes_methods.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its group."""
    for item in items:
        group = "several processes" if item.path.name in _SEVERAL_PROCESSES else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
