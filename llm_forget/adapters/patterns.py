"""Match regular expressions of adapter configs, which may come from anywhere, in bounded time.

Python's ``re`` backtracks: ``([a-z.]+)+!`` would take years on a name of 40 characters, and nothing can interrupt it in a
thread. Patterns with at most one repetition and few choices are matched here. All others are matched in a process of their own,
which is ended after a few seconds.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from llm_forget.errors import AdapterError

SECONDS = 4.0
_LONGEST = 20_000  # characters of all patterns together
_DIRECT = 20_000  # patterns times names for patterns with a repetition
_DIRECT_PLAIN = 2_000_000  # the same for patterns without any choice
Mode = Literal["full", "end"]
_ENDS = r"(.*\.)?({})$"  # how PEFT matches the keys of rank_pattern: peft.utils.other.get_pattern_key

_CHILD = """
import json, re, sys
mode, patterns, names = json.load(sys.stdin)
found = [[] for _ in names]
for place, pattern in enumerate(patterns):
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        print(json.dumps([place, str(error)])); sys.exit()
    match = compiled.fullmatch if mode == "full" else compiled.match
    for at, name in enumerate(names):
        if match(name):
            found[at].append(place)
print(json.dumps([found, None]))
"""


def matches(patterns: Iterable[str], names: Iterable[str], mode: Mode, key: str) -> Sequence[Sequence[int]]:
    """For each name the numbers of the patterns that match it.

    Args:
        patterns: regular expressions.
        names: module names.
        mode: ``full`` for the whole name, ``end`` for the end of the name after any dot.
        key: where the patterns come from, for messages.

    Raises:
        AdapterError: a pattern is no regular expression, or matching takes longer than a few seconds.
    """
    return _matches(tuple(patterns), tuple(names), mode, key)


@functools.lru_cache(maxsize=256)
def _matches(patterns: tuple[str, ...], names: tuple[str, ...], mode: Mode, key: str) -> Sequence[Sequence[int]]:
    if not patterns or not names:
        return [()] * len(names)
    size = len(patterns) * len(names)
    plain = all(map(_plain, patterns))
    if not plain and sum(map(len, patterns)) > _LONGEST:
        raise AdapterError(f"{key} has more than {_LONGEST:,} characters; name the layers in a list instead.")
    full = [_ENDS.format(one) for one in patterns] if mode == "end" else patterns
    if (plain and size <= _DIRECT_PLAIN) or (size <= _DIRECT and all(map(_cheap, patterns))):
        return _match_here(patterns, full, names, mode, key)
    return _match_apart(patterns, full, names, mode, key)


def _plain(pattern: str) -> bool:
    """Whether a pattern has no choice at all, as the escaped names that exports write."""
    return re.search(r"[*+?{|(]", pattern) is None


def _cheap(pattern: str) -> bool:
    """Whether backtracking is bounded by a small polynomial: one repetition of a single character, and few choices."""
    repeats = len(re.findall(r"[*+{]", pattern))
    return repeats <= 1 and len(re.findall(r"[*+?{|]", pattern)) <= 6 and not re.search(r"\)[*+{]", pattern)


def _match_here(
    patterns: Sequence[str], full: Sequence[str], names: Sequence[str], mode: Mode, key: str
) -> Sequence[Sequence[int]]:
    found: list[list[int]] = [[] for _ in names]
    for place, pattern in enumerate(full):
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise _invalid(key, patterns[place], str(error)) from error
        match = compiled.fullmatch if mode == "full" else compiled.match
        for at, name in enumerate(names):
            if match(name):
                found[at].append(place)
    return found


def _match_apart(
    patterns: Sequence[str], full: Sequence[str], names: Sequence[str], mode: Mode, key: str
) -> Sequence[Sequence[int]]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps([mode, full, names]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise AdapterError(
            f"{key} {_short(patterns[0])} takes more than {SECONDS:.0f} seconds to match. Remove nested repetitions from it, or "
            "name the layers in a list."
        ) from None
    except (OSError, subprocess.CalledProcessError) as error:
        raise AdapterError(
            f"{key} {_short(patterns[0])} could not be matched ({type(error).__name__}). Name the layers in a list instead."
        ) from error
    found, reason = json.loads(done.stdout)
    if reason is not None:
        raise _invalid(key, patterns[found], reason)
    return found  # type: ignore[no-any-return]


def _invalid(key: str, pattern: str, reason: str) -> AdapterError:
    return AdapterError(f"{key} {_short(pattern)} is not a regular expression ({reason}); correct it.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
