"""Select the tests to run, the device and the order.

``pytest`` alone runs the fast tests on the CPU, with pytest-xdist on all cores (at most four); with paths or ``-n 0``, in one
process. ``-m gpu`` runs the GPU tests, and ``-m ""`` runs all but those.
``--hypothesis-profile full`` draws the full number of examples, ``explore`` many others; the default draws a quarter of them.

pytest-xdist distributes whole files, because fixtures are shared within a file. Files that start groups of processes
share one worker: accelerate's launchers take a fixed port, and two groups at once would collide.

A test that needs an extra which is not installed is skipped, with the message that a user would read as the reason.
If a command catches that message itself, mark the test with ``needs("rouge_score")`` (tests/helpers/extras.py).
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import hypothesis
import pytest
import typer.main
import typer.testing

from llm_forget.errors import MissingExtraError

_SEVERAL_PROCESSES = {
    "test_methods_on_two_processes.py",
    "test_processes.py",
    "test_shards.py",
    "test_two_processes.py",
    "test_two_processes_methods.py",
}
# pytest-xdist starts these first, the longest first, so that no worker is left with a long file at the end.
_LONGEST_FIRST = [
    *sorted(_SEVERAL_PROCESSES),
    "test_architectures.py",
    "test_architectures_commands.py",
    "test_plan.py",
    "test_browser.py",
    "test_damaged_runs.py",
    "test_signals_launched.py",
    "test_privacy.py",
    "test_search_run.py",
    "test_resume.py",
]

# The suite draws the same examples each time, so that a change fails for what it does. "explore" draws others.
hypothesis.settings.register_profile("fast", max_examples=25, derandomize=True)
hypothesis.settings.register_profile("full", max_examples=100, derandomize=True)
hypothesis.settings.register_profile("explore", max_examples=1000)
hypothesis.settings.load_profile("fast")


# Typer builds its commands anew for each call, which takes 0.06 s; a real process calls it once.
typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use several processes for the whole suite; pytest-xdist reads the option after this."""
    option = config.option
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker must not start workers of its own
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr != "gpu"
    alone = option.usepdb or option.collectonly or option.capture == "no"
    if whole and not alone and getattr(option, "numprocesses", 0) is None:
        option.numprocesses = min(4, os.cpu_count() or 1)
        option.loadscopereorder = False
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU, before it is initialised, from tests that compare bit for bit, fork, or keep models on the CPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first on every worker of pytest-xdist; a single process keeps the usual order."""
    if hasattr(config, "workerinput"):
        places = {name: place for place, name in enumerate(_LONGEST_FIRST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler that distributes whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "several processes" if PurePosixPath(file).name in _SEVERAL_PROCESSES else file

    return ByFile(config, log)


@contextmanager
def _skipped_without_extra() -> Iterator[None]:
    """Skip a test that needs a missing package, also if ``pytest.raises`` expected another message."""
    try:
        yield
    except BaseException as error:
        missing = error if isinstance(error, MissingExtraError) else error.__context__
        if isinstance(missing, MissingExtraError):
            pytest.skip(str(missing))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Any:
    with _skipped_without_extra():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    with _skipped_without_extra():
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def _imported_objects_are_permanent() -> None:
    """Take what exists now out of garbage collection: every run of the Trainer collects, and millions of objects take 0.4 s."""
    gc.freeze()


@pytest.fixture(scope="session")
def memorised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``forget.jsonl``, ``retain.jsonl`` and a ``model/`` that memorised both (helpers/memorised.py). Read-only."""
    from memorised import FORGET, RETAIN, write_memorised

    return write_memorised(tmp_path_factory.mktemp("memorised"), {"forget": FORGET, "retain": RETAIN})
