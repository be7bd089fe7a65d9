"""Run a main function: every way to end has an exit status and a message on standard error, without a traceback."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_forget.errors import Interrupted, UserError
from llm_forget.utils.quick_imports import quick_imports
from llm_forget.utils.rank import process_rank
from llm_forget.utils.signals import Ended, end_with_launcher, ending_cleanly
from llm_forget.utils.terminal import echo, wrapped

WRONG_INPUT, INTERNAL, INTERRUPTED = 2, 3, 130
_TEXT_OPTIONS = ("-q", "--question", "--prompt", "--encoding.system_prompt")
_OWN_MESSAGE = (OSError, ImportError, MemoryError, RuntimeError)  # messages that never quote data rows


def run_entry(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Call ``main(argv)``, and turn errors and signals into a message on standard error and an exit status.

    2: wrong input, or a full disk; the message says what to do. 3: an internal error, in one line. 143, 130, 129: interrupted by
    SIGTERM, SIGINT, SIGHUP. Only the first process prints the message. ``--debug`` and ``LLM_FORGET_DEBUG=1`` show the
    traceback too.
    """
    if "--debug" in argv:
        argv = [one for one in argv if one != "--debug"]
        os.environ["LLM_FORGET_DEBUG"] = "1"
    argv = with_home(argv)
    quiet_libraries()
    with ending_cleanly():
        _run(main, argv)


def with_home(argv: Sequence[str]) -> list[str]:
    """Arguments with ``~/`` replaced by the home folder, also in ``--option=~/path``, which shells leave alone.

    Questions and prompts are no paths.
    """
    found: list[str] = []
    for before, one in zip(["", *argv], argv, strict=False):
        flag, equals, value = one.partition("=") if one.startswith("--") else ("", "", one)
        text = (flag or before) in _TEXT_OPTIONS
        found.append(flag + equals + str(Path(value).expanduser()) if value.startswith("~/") and not text else one)
    return found


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    status: int | None = None
    try:
        end_with_launcher()
        main(argv)
    except UserError as error:
        status = _told(WRONG_INPUT, f"error: {error}")
    except (Interrupted, Ended) as ended:
        status = _ended(ended.exit_code, f"interrupted: {ended}")
    except KeyboardInterrupt:
        status = _ended(INTERRUPTED, "interrupted")
    except BrokenPipeError:  # `| head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        from llm_forget.utils.disk import AGAIN, full_disk

        full = full_disk(error)
        if full is not None:
            status = _told(WRONG_INPUT, f"error: {full}. Existing files are unchanged. Free disk space and {AGAIN}")
        else:
            status = _told(INTERNAL, "" if _debugging() else _one_line(error))
    if status is not None:
        sys.exit(status)


def _ended(status: int, message: str) -> int:
    if status == INTERRUPTED and sys.stderr.isatty():
        echo(file=sys.stderr)  # the terminal has just printed ^C
    return _told(status, message, debug=False)


def _debugging() -> bool:
    return os.environ.get("LLM_FORGET_DEBUG") == "1"


def _told(status: int, message: str, *, debug: bool = True) -> int:
    """Print the message, after the traceback with ``--debug``. Returns the status."""
    if debug and _debugging():
        echo(traceback.format_exc(), file=sys.stderr)
    if process_rank() == 0 and message:
        width = shutil.get_terminal_size().columns
        echo(wrapped(message, width) if sys.stderr.isatty() else message, file=sys.stderr)
    return status


def _one_line(error: Exception) -> str:
    """The error in one line, without a traceback. A message that could quote a data row is omitted."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    message = f": {error}" if isinstance(error, _OWN_MESSAGE) else ""
    return f"error: {type(error).__name__} in {place}{message}\nRun it again with --debug to see the traceback."


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and repeated advice, which would break up our own progress output.

    It also keeps them from work on import that no command needs.
    """
    quick_imports()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a line for each of five retries without a network
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # one bar per file
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
