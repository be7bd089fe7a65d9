"""How a script ends: a user's mistake is one message and exit status 2, without a traceback."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable

from llm_forget.errors import Interrupted, UserError


def run_entry(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Call ``main(argv)``; turn a ``UserError`` into its message on standard error and exit status 2.

    A run that was told to end ends with its message and exit status 143.

    ``LLM_FORGET_DEBUG=1`` shows the traceback too.
    """
    quiet_libraries()
    try:
        main(argv)
    except UserError as error:
        if os.environ.get("LLM_FORGET_DEBUG") == "1":
            traceback.print_exc()
        # one message, not one a process
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"interrupted: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and repeated advice out of our own progress; warnings that matter stay."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar a file, in the middle of our own
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
