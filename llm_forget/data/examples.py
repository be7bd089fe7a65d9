"""Read examples from the files people have, check every row, and report what is wrong by file, line and remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_forget.data.readers import Row, locate, read_file, read_hub, take
from llm_forget.errors import DataError

ROLES = ("system", "user", "assistant")
_SHOWN = 10  # problems of a file that are printed one by one before the rest is counted
_SHOWN_PAIRS = 5

# The forms a row can have, by the fields that must be there.
_FORMS: dict[str, tuple[str, ...]] = {
    "qa": ("question", "answer"),
    "prompt": ("prompt", "completion"),
    "chat": ("messages",),
    "text": ("text",),
}
_OPTIONAL = ("paraphrased_answer", "perturbed_answer", "alternative")
FIELDS = (*dict.fromkeys(name for form in _FORMS.values() for name in form), *_OPTIONAL)
_MAPPING_HINT = "For other names set columns, for example {question: <the file's column>, answer: <the file's column>}"
_COLUMN_NAME = re.compile(r"[\w.-]{1,40}")


@dataclass(frozen=True)
class Message:
    """One chat turn."""

    role: str
    # No text in a repr: tracebacks and logs print those, and forget sets are private.
    content: str = field(repr=False)


@dataclass(frozen=True)
class Example:
    """One thing to forget, keep or test: a prompt, its answer, and other answers to score against it.

    Attributes:
        id: digest of prompt and answer (16 hex digits); the only handle of an example in logs and results.
        prompt: chat turns (rendered with the chat template), a raw string (prompt/completion data, used as it is),
            or ``""`` for plain text, where everything is answer.
        answer: the text whose tokens are scored.
        paraphrases: other wordings of the right answer.
        wrong_answers: answers of the same form that are false.
        alternative: what the model should say instead, for methods that need it.
        source: where it was read, ``file:line``, for messages.
    """

    id: str
    prompt: str | tuple[Message, ...] = field(repr=False)
    answer: str = field(repr=False)
    paraphrases: tuple[str, ...] = field(default=(), repr=False)
    wrong_answers: tuple[str, ...] = field(default=(), repr=False)
    alternative: str | None = field(default=None, repr=False)
    source: str = ""


@dataclass(frozen=True)
class DataSource:
    """Where examples are read from, as a recipe says it."""

    # A .jsonl, .json, .csv, .tsv or .parquet file (relative to the recipe), or the id of a data set on the hub.
    path: str
    # What a row is: "qa" (question, answer), "prompt" (prompt, completion), "chat" (messages) or "text" (text);
    # "auto" goes by the columns.
    format: Literal["auto", "qa", "prompt", "chat", "text"] = "auto"
    # Our field -> the file's column, for files that name them otherwise: {question: query, answer: reply}.
    columns: dict[str, str] = field(default_factory=dict)
    # Which split of a data set on the hub; a file has none.
    split: str = "train"
    # Which configuration of a data set on the hub.
    name: str | None = None
    # Read only the first so many rows.
    limit: int | None = None
    # Branch, tag or commit of a data set on the hub.
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.format not in ("auto", *_FORMS):
            raise DataError(f"format is {self.format!r}; allowed are auto, {', '.join(_FORMS)}")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit is {self.limit}; give 1 or more, or leave it out to read every row")
        for unknown in [name for name in self.columns if name not in FIELDS]:
            nearest = difflib.get_close_matches(unknown, FIELDS, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise DataError(
                f"columns names the field {unknown!r}{hint}; allowed are {', '.join(FIELDS)}, "
                "each with the name of the file's column as its value"
            )


def example_id(prompt: str | Sequence[Message], answer: str) -> str:
    """Digest of a prompt's roles and contents and of the answer: the same text has the same id in every file.

    Args:
        prompt: chat turns or a raw string.
        answer: the answer.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    turns = prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    # JSON keeps the parts apart: concatenation would give ("ab", "c") and ("a", "bc") one id.
    canonical = json.dumps([turns, answer], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


def read_examples(source: DataSource) -> list[Example]:
    """Read a data source and check every row of it.

    Args:
        source: what to read. Relative paths start from the current folder.

    Returns:
        The examples in file order; exact duplicates are kept (``count_duplicates`` tells how many there are).

    Raises:
        DataError: for a missing or empty file, columns that say no form or several, and bad rows, which are reported
            all at once, by place and remedy and never by their text.
    """
    path = locate(source.path)
    if path is None:
        found = read_hub(source.path, source.name, source.split, source.revision)
    else:
        found = read_file(path, source.path)
    return check_rows(found, source)


def check_rows(found: Iterator[Row], source: DataSource) -> list[Example]:
    """Check every row and make the examples of a source.

    Args:
        found: its rows.
        source: what they are: form, columns and limit; ``path`` is what messages call them.

    Raises:
        DataError: as ``read_examples``.
    """
    rows = take(found, source.limit)
    if not rows:
        raise DataError(
            f"{source.path}: holds no rows; at least one example is needed: check that this is the file meant"
        )

    readable = [row for row in rows if row.problem is None]
    if not readable:
        raise DataError(_report(source.path, [(row.source, row.problem or "") for row in rows], len(rows)))
    form = _choose_form(source, readable)

    examples: list[Example] = []
    problems: list[tuple[str, str]] = []
    for row in rows:
        try:
            examples.append(_to_example(row, form, source.columns))
        except DataError as error:
            problems.append((row.source, str(error)))
    if problems:
        raise DataError(_report(source.path, problems, len(rows)))
    return examples


def count_duplicates(examples: Iterable[Example]) -> int:
    """How many examples repeat an earlier one (same prompt and same answer)."""
    return sum(count - 1 for count in Counter(example.id for example in examples).values())


def check_overlap(forget: Sequence[Example], retain: Sequence[Example]) -> tuple[str, ...]:
    """Compare what is to be forgotten with what is to be kept, up to case and white space.

    Args:
        forget: the examples to forget.
        retain: the examples to keep.

    Returns:
        Warnings: at most one, for questions that both sets answer, each in its way.

    Raises:
        DataError: when both sets hold the same example: one would be pushed down and up at once.
    """
    kept: dict[tuple[str, ...], list[tuple[str, Example]]] = {}
    for example in retain:
        kept.setdefault(_question(example), []).append((_normal(example.answer), example))

    same: list[str] = []
    differing: list[str] = []
    for example in forget:
        question, answer = _question(example), _normal(example.answer)
        others = kept.get(question, [])
        equal = [other for text, other in others if text == answer]
        if equal:
            same.append(f"{_place(example)} = {_place(equal[0])}")
        elif others and question:  # plain text has no question: all of it would be "the same"
            differing.append(f"{_place(example)} ~ {_place(others[0][1])}")

    if same:
        raise DataError(
            f"{len(same)} of {len(forget)} examples to forget are also to be kept ({_first(same)}); "
            "take them out of the retain set, or out of the forget set"
        )
    if not differing:
        return ()
    return (
        f"{len(differing)} of {len(forget)} questions to forget are in the retain set with another answer "
        f"({_first(differing)}); keeping those may keep what is to be forgotten",
    )


def _first(pairs: list[str]) -> str:
    """The first few pairs of places."""
    return ", ".join(pairs[:_SHOWN_PAIRS]) + (", ..." if len(pairs) > _SHOWN_PAIRS else "")


def _place(example: Example) -> str:
    """Where an example was read, or its id when it was made in memory."""
    return example.source or f"example {example.id}"


def _normal(text: str) -> str:
    """A text up to case and white space."""
    return " ".join(text.casefold().split())


def _question(example: Example) -> tuple[str, ...]:
    """What is asked, however it was written down: roles and system turns do not change the question."""
    if isinstance(example.prompt, str):
        return (_normal(example.prompt),) if example.prompt else ()
    return tuple(_normal(turn.content) for turn in example.prompt if turn.role != "system")


def _report(path: str, problems: list[tuple[str, str]], rows: int) -> str:
    """All bad rows of a file in one message: the first by place and remedy, the rest by number."""
    lines = [f"  {place}: {problem}" for place, problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join([f"{path}: {len(problems)} of {rows} rows cannot be used", *lines])


def _choose_form(source: DataSource, rows: Sequence[Row]) -> str:
    """Which form the rows have: the one asked for, or the only one that the columns allow."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    place, found = rows[0].source, f"the columns found are {_column_names(columns)}"
    for name, column in source.columns.items():
        if column not in columns:
            raise DataError(f"{place}: columns says that {name} is in {column!r}, which no row has; {found}")

    forms = [
        form for form, fields in _FORMS.items() if all(source.columns.get(name, name) in columns for name in fields)
    ]
    if source.format != "auto":
        if source.format in forms:
            return source.format
        needed = " + ".join(_FORMS[source.format])
        raise DataError(f"{place}: format {source.format} needs {needed}; {found}. {_MAPPING_HINT}")
    if len(forms) > 1:
        # A mapping for a form's own field says that this form is meant.
        named = {name for name in source.columns if name not in _OPTIONAL}
        forms = [form for form in forms if named and named <= set(_FORMS[form])] or forms
    if len(forms) == 1:
        return forms[0]
    allowed = "; ".join(f"{form}: {' + '.join(fields)}" for form, fields in _FORMS.items())
    reason = f"which could be any of {', '.join(forms)}: set format" if forms else "which is none of the forms known"
    raise DataError(f"{place}: {found}, {reason}. The forms are {allowed}. {_MAPPING_HINT}")


def _column_names(columns: Sequence[str]) -> str:
    """Column names for a message; what looks like a sentence is not printed, since it may be the data itself."""
    names = [name for name in columns if _COLUMN_NAME.fullmatch(name)]
    shown = names[:20]
    hidden = len(columns) - len(shown)
    more = [f"{hidden} more"] if hidden else []
    return ", ".join(shown + more) or "none"


def _to_example(row: Row, form: str, columns: Mapping[str, str]) -> Example:
    """The example in a row; raises a DataError without the place, which the caller adds."""
    if row.problem is not None:
        raise DataError(row.problem)
    values = {name: row.values.get(columns.get(name, name)) for name in FIELDS}

    def called(name: str) -> str:
        column = columns.get(name, name)
        return name if column == name else f"{name} (column {column})"

    prompt: str | tuple[Message, ...]
    if form == "qa":
        prompt = (Message("user", _text(values["question"], called("question"))),)
        answer = _text(values["answer"], called("answer"))
    elif form == "text":
        prompt, answer = "", _text(values["text"], called("text"))
    elif form == "chat":
        prompt, answer = _split_chat(_turns(values["messages"], called("messages")), called("messages"))
    elif isinstance(values["prompt"], list) or isinstance(values["completion"], list):
        turns = _turns(values["prompt"], called("prompt")) + _turns(values["completion"], called("completion"))
        if len(_as_list(values["completion"], called("completion"))) != 1:
            raise DataError(f"{called('completion')} is not a single message: give one assistant turn")
        prompt, answer = _split_chat(turns, called("completion"))
    else:
        prompt = _text(values["prompt"], called("prompt"))
        answer = _text(values["completion"], called("completion"))

    alternative = values["alternative"]
    return Example(
        id=example_id(prompt, answer),
        prompt=prompt,
        answer=answer,
        paraphrases=_texts(values["paraphrased_answer"], called("paraphrased_answer")),
        wrong_answers=_texts(values["perturbed_answer"], called("perturbed_answer")),
        alternative=None if alternative is None else _text(alternative, called("alternative")),
        source=row.source,
    )


def _text(value: object, name: str) -> str:
    """A string with something in it that can be written as UTF-8."""
    if value is None:
        raise DataError(f"{name} is missing: give it a text, or take the row out")
    if not isinstance(value, str):
        raise DataError(f"{name} is a {type(value).__name__}, not a string: write it in quotes")
    if not value.strip():
        raise DataError(f"{name} is empty or only white space: give it a text, or take the row out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{name} holds half of a surrogate pair (\\ud800 to \\udfff): write the whole character"
        ) from None
    return value


def _as_list(value: object, name: str) -> list[object]:
    """A list, from a list, or from the JSON that a CSV cell holds instead of one."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise DataError(f"{name} looks like a list and is not JSON: write it with double quotes") from None
    if not isinstance(value, list):
        given = "missing" if value is None else f"a {type(value).__name__}, not a list"
        raise DataError(f"{name} is {given}: give a list")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    """Other answers: nothing, one string, or a list of strings."""
    if value is None:
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return (_text(value, name),)
    entries = _as_list(value, name) if not isinstance(value, str) or value.rstrip().endswith("]") else [value]
    return tuple(_text(entry, f"{name}[{index}]") for index, entry in enumerate(entries))


def _turns(value: object, name: str) -> tuple[Message, ...]:
    """Chat turns from a list of objects with a role and a content."""
    turns = []
    for index, entry in enumerate(_as_list(value, name)):
        place = f"{name}[{index}]"
        if not isinstance(entry, dict):
            raise DataError(f"{place} is a {type(entry).__name__}, not an object with role and content")
        role = entry.get("role")
        if role not in ROLES:
            raise DataError(f"{place} has a role that is not known: allowed are {', '.join(ROLES)}")
        turns.append(Message(role, _text(entry.get("content"), f"{place}.content")))
    return tuple(turns)


def _split_chat(turns: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """A conversation as everything before its last turn, and that turn, which the assistant must have."""
    if not turns or turns[-1].role != "assistant":
        raise DataError(f"{name} does not end with an assistant turn: the last turn is the answer")
    if not any(turn.role == "user" for turn in turns[:-1]):
        raise DataError(f"{name} holds no user turn before the answer: give the question, or use the text format")
    return turns[:-1], turns[-1].content
