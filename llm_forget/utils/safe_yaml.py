"""Read YAML from other people: plain values only, bounded in size, depth and in what aliases expand to.

A file of less than 1 kB can describe billions of values through nested aliases, and an alias inside its own anchor never ends.
The events of the parser are counted before any value is built, so both end in a message at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_forget.errors import UserError

MOST_BYTES = 4 << 20  # of a file; a recipe has a few kB
MOST_VALUES = 100_000  # values of a file, aliases written out
MOST_LEVELS = 50  # lists and mappings inside each other
_LONGEST_NUMBER = 400  # characters of a number; PyYAML's base-60 numbers take quadratic time
_NUMBER = re.compile(r"[-+0-9._:eExXa-fA-F]*")
# The C parser is ten times faster, but optional in PyYAML.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotPlainYaml(UserError):
    """A text is not YAML, or is more than plain YAML of a reasonable size; the message continues a sentence."""


def read_yaml(file: Path) -> Any:
    """Read a YAML file: numbers, texts, dates, true, false, null, lists and mappings. Tags that run code are refused.

    Args:
        file: the file, in UTF-8.

    Raises:
        NotPlainYaml: the file cannot be read, is not YAML, or is too large; see ``load_yaml``.
    """
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise NotPlainYaml(f"it has {size / 1e6:.0f} MB; at most {MOST_BYTES >> 20} MB of YAML are read")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NotPlainYaml(f"it is not text in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise NotPlainYaml(f"it cannot be read: {error.strerror}") from None
    return load_yaml(text)


def load_yaml(text: str) -> Any:
    """Parse YAML. Every list and mapping of the result is an object of its own, also where the text uses aliases.

    Raises:
        NotPlainYaml: the text is not YAML, has a tag such as ``!!python/name``, is nested more than ``MOST_LEVELS`` deep,
            gives a key twice, has an alias inside its own anchor, or has more than ``MOST_VALUES`` values with its aliases
            written out.
    """
    if len(text) > MOST_BYTES:
        raise NotPlainYaml(f"it has {len(text) / 1e6:.0f} million characters; at most {MOST_BYTES >> 20} are read")
    try:
        _check_events(yaml.parse(text, Loader=_Loader))
        return _own_copy(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise NotPlainYaml(f"{error.problem or 'it cannot be parsed'}{place}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        # PyYAML raises ValueError for an impossible date
        if isinstance(error, UserError):
            raise
        raise NotPlainYaml(str(error).partition("\n")[0] or type(error).__name__) from None


@dataclass
class _Open:
    """A list or mapping whose end the parser has not reached.

    Attributes:
        anchor: its anchor, or None.
        is_mapping: whether it is a mapping.
        values: number of values so far, itself included, with aliases written out.
        children: number of direct children so far; those of a mapping alternate between key and value.
        keys: the plain keys of a mapping so far.
    """

    anchor: str | None
    is_mapping: bool
    values: int = 1
    children: int = 0
    keys: set[tuple[str, bool]] = field(default_factory=set)


def _check_events(events: Iterable[Any]) -> None:
    """Raise an error for cycles, depth, size and repeated keys, from the parser's events alone."""
    opened = [_Open(None, is_mapping=False)]
    sizes: dict[str, int | None] = {}  # of each anchor; None while it is open
    for event in events:
        if isinstance(event, yaml.ScalarEvent):
            _check_scalar(event, opened[-1])
            _add(opened[-1], 1)
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append(_Open(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            if event.anchor is not None:
                sizes[event.anchor] = None
            if len(opened) > MOST_LEVELS + 1:
                raise NotPlainYaml(f"it is nested more than {MOST_LEVELS} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = opened.pop()
            if ended.anchor is not None:
                sizes[ended.anchor] = ended.values
            _add(opened[-1], ended.values)
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(str(event.anchor), 1)  # the loader reports an unknown anchor
            if size is None:
                raise NotPlainYaml(f"the alias *{event.anchor} is inside its own anchor, so it never ends")
            _add(opened[-1], size)


def _add(parent: _Open, values: int) -> None:
    parent.values += values
    parent.children += 1
    if parent.values > MOST_VALUES:
        raise NotPlainYaml(f"it has more than {MOST_VALUES:,} values, aliases included")


def _check_scalar(event: Any, parent: _Open) -> None:
    if event.implicit[0] and len(event.value) > _LONGEST_NUMBER and _NUMBER.fullmatch(event.value):
        raise NotPlainYaml(f"it has a number of {len(event.value)} characters")
    if parent.is_mapping and parent.children % 2 == 0 and event.value != "<<":
        key = (event.value, event.implicit[0])  # 1 and "1" are two keys
        if key in parent.keys:
            raise NotPlainYaml(f"the key {event.value[:40]!r} is given twice (line {event.start_mark.line + 1})")
        parent.keys.add(key)


def _own_copy(value: Any) -> Any:
    """A copy without objects that occur twice, so that a change in one place does not show in another."""
    if isinstance(value, dict):
        return {key: _own_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_own_copy(item) for item in value]
    return value
