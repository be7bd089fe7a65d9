"""Test the process with limits: it answers, and too much time, memory or a file ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_forget.utils.bounded import TooMuchError, run_bounded

MEMORY = 1 << 29


def write(folder: Path, body: str) -> str:
    (folder / "script.py").write_text(f"import sys\nasked = sys.stdin.read()\n{body}\n")
    return str(folder / "script.py")


def test_the_answer_is_what_the_script_writes(tmp_path: Path) -> None:
    assert run_bounded(write(tmp_path, "print(asked[::-1], end='')"), "äbc", seconds=5, memory=MEMORY) == "cbä"


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "print(len(bytearray(1 << 31)))",
        "open(__file__ + '.new', 'w').write('x' * 10_000); print('written')",
        "raise SystemExit(0)",
    ],
)
def test_too_much_time_memory_a_file_or_no_answer_is_an_error(body: str, tmp_path: Path) -> None:
    with pytest.raises(TooMuchError, match="more than 1 seconds of computing, or too much memory"):
        run_bounded(write(tmp_path, body), "", seconds=1, memory=MEMORY)
