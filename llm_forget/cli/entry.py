"""Run a script's main function: report a user's mistake as one message with exit status 2, without a traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable

from llm_forget.errors import Interrupted, UserError
from llm_forget.utils.terminal import echo


def run_entry(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Call ``main(argv)`` and turn our own errors into a message on standard error and an exit status.

    A ``UserError`` exits with status 2, an interrupted run with its own status (143 for SIGTERM). Only the first process
    prints the message. ``LLM_FORGET_DEBUG=1`` shows the traceback too.
    """
    quiet_libraries()
    try:
        main(argv)
    except UserError as error:
        if os.environ.get("LLM_FORGET_DEBUG") == "1":
            echo(traceback.format_exc(), file=sys.stderr)
        if os.environ.get("RANK", "0") == "0":
            echo(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            echo(f"interrupted: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


def quiet_libraries() -> None:
    """Turn off the libraries' progress bars and repeated advice, which would break up our own progress output."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # one bar per file
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
