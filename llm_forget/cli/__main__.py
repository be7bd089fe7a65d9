"""The installed command, also as ``python -m llm_forget.cli``. It imports nothing before Ctrl-C ends it with one line."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the commands, and run one."""
    try:
        from llm_forget.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
