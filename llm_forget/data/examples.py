"""Read examples, check every row, and report all problems with file, line and remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from llm_forget.data.readers import locate, read_file, read_hub
from llm_forget.data.row import MOST_CHARACTERS, Row, take
from llm_forget.errors import DataError

ROLES = ("system", "user", "assistant")
_OTHER_ROLES = {"human": "user", "gpt": "assistant"}  # as in ShareGPT
# Parts of a turn that would change what the model is taught if they were ignored.
_NOT_READ = {
    "tool_calls": "write the call into content",
    "reasoning_content": "write the thoughts into content, as <think>...</think> before the answer",
    "thinking": "write the thoughts into content, as <think>...</think> before the answer",
}
_SHOWN = 10  # problems of a file that are printed; the rest is counted
_SHOWN_PAIRS = 5
_MOST_COLUMNS = 100  # whose names may be printed

# The forms of a row, and the fields that each requires.
_FORMS: dict[str, tuple[str, ...]] = {
    "qa": ("question", "answer"),
    "prompt": ("prompt", "completion"),
    "chat": ("messages",),
    "text": ("text",),
}
_OPTIONAL = ("paraphrased_answer", "perturbed_answer", "alternative", "subject")
FIELDS = (*dict.fromkeys(name for form in _FORMS.values() for name in form), *_OPTIONAL)
_MAPPING_HINT = "For other names set columns, for example {question: <the file's column>, answer: <the file's column>}"
# Names of columns in public data sets. They are no private data, and help to see what a file holds.
_USUAL_COLUMNS = (
    *("id", "idx", "index", "query", "reply", "response", "instruction", "input", "output"),
    *("context", "title", "content", "label", "source", "target", "role", "conversation", "conversations"),
    *("chosen", "rejected", "topic", "category", "subject", "author", "name", "type", "split"),
    *("url", "date", "questions", "answers", "texts", "responses", "labels", "q", "a"),
)


@dataclass(frozen=True)
class Message:
    """One chat turn."""

    role: str
    # Texts are not in the repr, which tracebacks and logs print, because forget sets are private.
    content: str = field(repr=False)


@dataclass(frozen=True)
class Example:
    """A prompt, its answer, and other answers that are compared with it.

    Attributes:
        id: digest of prompt and answer (16 hex digits). Logs and results name an example only by its id.
        prompt: chat turns (rendered with the chat template), a raw string (prompt/completion data, not changed),
            or ``""`` for plain text, which is all answer.
        answer: the text whose tokens are scored.
        paraphrases: paraphrases of the right answer.
        wrong_answers: wrong answers of the same form.
        alternative: the answer that the model should give instead, for methods that need it.
        source: its location, ``file:line``, for messages.
        subject: the name that the row is about, if a column gives it.
    """

    id: str
    prompt: str | tuple[Message, ...] = field(repr=False)
    answer: str = field(repr=False)
    paraphrases: tuple[str, ...] = field(default=(), repr=False)
    wrong_answers: tuple[str, ...] = field(default=(), repr=False)
    alternative: str | None = field(default=None, repr=False)
    source: str = ""
    subject: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DataSource:
    """A data source of a recipe or suite."""

    # A file with JSON (.jsonl, .json or any other name), a table (.csv, .tsv), Parquet or Arrow; a folder of save_to_disk; or the
    # id of a data set on the hub. Relative paths start from the current folder.
    path: str
    # Form of the rows: "qa" (question, answer), "prompt" (prompt, completion), "chat" (messages) or "text" (text).
    # "auto" decides by the columns.
    format: Literal["auto", "qa", "prompt", "chat", "text"] = "auto"
    # Maps our field names to the file's column names: {question: query, answer: reply}.
    columns: dict[str, str] = field(default_factory=dict)
    # Split of a data set on the hub, or in a folder of save_to_disk. Ignored for files.
    split: str = "train"
    # Configuration of a data set on the hub.
    name: str | None = None
    # Read only the first `limit` rows. null reads all rows.
    limit: int | None = None
    # Branch, tag or commit of a data set on the hub.
    revision: str | None = None
    # File in data_dir that holds the same data. It is read instead of `path` when data_dir is set.
    file: str | None = None
    # Leave this set out, with a note, if its file does not exist.
    optional: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
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
    """Digest of a prompt (roles and contents) and its answer. The same text has the same id in every file.

    Args:
        prompt: chat turns or a raw string.
        answer: the answer.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    turns = prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    # JSON separates the parts: concatenation would give ("ab", "c") and ("a", "bc") the same id.
    canonical = json.dumps([turns, answer], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


def read_examples(source: DataSource, notes: list[str] | None = None) -> list[Example]:
    """Read a data source and check every row.

    Args:
        source: the data source. Relative paths start from the current folder.
        notes: gets lines for the user about how the file was read.

    Returns:
        The examples in file order; exact duplicates are kept.

    Raises:
        DataError: the file is missing or empty, the columns match no form or several, or rows are invalid. All invalid rows
            are reported at once with location and remedy, and without their text.
    """
    path = locate(source.path)
    if path is None:
        found = read_hub(source.path, source.name, source.split, source.revision)
    else:
        found = read_file(path, source.path, source.split, source.limit, notes)
    return check_rows(found, source)


def check_rows(found: Iterator[Row], source: DataSource) -> list[Example]:
    """Check every row and convert it to an example.

    Args:
        found: the rows.
        source: their form, columns and limit; ``path`` is their name in messages.

    Raises:
        DataError: as ``read_examples``.
    """
    rows = take(found, source.limit, source.path)
    if not rows:
        raise DataError(f"{source.path}: holds no rows; at least one example is needed: check the path")

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


def check_overlap(forget: Sequence[Example], retain: Sequence[Example]) -> tuple[str, ...]:
    """Compare forget and retain examples, ignoring case and white space.

    Args:
        forget: the examples to forget.
        retain: the examples to keep.

    Returns:
        At most one warning, for questions that are in both sets with different answers.

    Raises:
        DataError: both sets hold the same example, which would be forgotten and kept at once.
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
        elif others and question:  # plain texts have no question to compare
            differing.append(f"{_place(example)} ~ {_place(others[0][1])}")

    if same:
        raise DataError(
            f"{len(same)} of {len(forget)} examples to forget are also to be kept ({_first(same)}); "
            "remove them from the retain set or from the forget set"
        )
    if not differing:
        return ()
    return (
        f"{len(differing)} of {len(forget)} questions to forget are in the retain set with another answer "
        f"({_first(differing)}); keeping those may keep what is to be forgotten",
    )


def _first(pairs: list[str]) -> str:
    """The locations of the first pairs."""
    return ", ".join(pairs[:_SHOWN_PAIRS]) + (", ..." if len(pairs) > _SHOWN_PAIRS else "")


def _place(example: Example) -> str:
    """The location of an example, or its id if it was created in memory."""
    return example.source or f"example {example.id}"


def _normal(text: str) -> str:
    """A text in lower case with single spaces."""
    return " ".join(text.casefold().split())


def _question(example: Example) -> tuple[str, ...]:
    """The question. Roles and system turns are ignored."""
    if isinstance(example.prompt, str):
        return (_normal(example.prompt),) if example.prompt else ()
    return tuple(_normal(turn.content) for turn in example.prompt if turn.role != "system")


def _report(path: str, problems: list[tuple[str, str]], rows: int) -> str:
    """One message for all invalid rows of a file. The first are printed with location and remedy, the rest are counted."""
    lines = [f"  {place}: {problem}" for place, problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return "\n".join([f"{path}: {len(problems)} of {rows} rows cannot be used", *lines])


def _choose_form(source: DataSource, rows: Sequence[Row]) -> str:
    """The form of the rows: the requested one, or the only one that the columns match."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    place, found = rows[0].source, f"the columns found are {_column_names(columns, source.columns.values())}"
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
        # A mapping for a required field of a form selects this form.
        named = {name for name in source.columns if name not in _OPTIONAL}
        forms = [form for form in forms if named and named <= set(_FORMS[form])] or forms
    if len(forms) == 1:
        return forms[0]
    allowed = "; ".join(f"{form}: {' + '.join(fields)}" for form, fields in _FORMS.items())
    reason = f"which could be any of {', '.join(forms)}: set format" if forms else "which is none of the forms known"
    raise DataError(f"{place}: {found}, {reason}. The forms are {allowed}. {_MAPPING_HINT}")


def _column_names(columns: Sequence[str], named: Iterable[str]) -> str:
    """Column names for a message.

    Only names that are usual, or like one that is known or that the recipe gives, are printed. In a table without a header,
    the first row of the data stands in their place.
    """
    known = {*_USUAL_COLUMNS, *FIELDS, *named}
    shown = [
        name for name in columns[:_MOST_COLUMNS] if difflib.get_close_matches(str(name).casefold(), known, 1, 0.75)
    ]
    hidden = len(columns) - len(shown)
    more = [f"{hidden} {'more ' if shown else ''}with other names (does the file have a header?)"] if hidden else []
    return ", ".join(shown[:20] + more) or "none"


def _to_example(row: Row, form: str, columns: Mapping[str, str]) -> Example:
    """Convert a row to an example. Errors do not name the location; the caller adds it."""
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

    # a column of this name may hold anything, so a value that is no text is not refused
    alternative, subject = values["alternative"], values["subject"]
    return Example(
        id=example_id(prompt, answer),
        prompt=prompt,
        answer=answer,
        paraphrases=_texts(values["paraphrased_answer"], called("paraphrased_answer")),
        wrong_answers=_texts(values["perturbed_answer"], called("perturbed_answer")),
        alternative=None if alternative is None else _text(alternative, called("alternative")),
        subject=subject if isinstance(subject, str) and len(subject) <= MOST_CHARACTERS else None,
        source=row.source,
    )


def _text(value: object, name: str) -> str:
    """Check that a value is a non-empty string that can be written as UTF-8."""
    if value is None:
        raise DataError(f"{name} is missing: give it a text, or remove the row")
    if not isinstance(value, str):
        raise DataError(f"{name} is a {type(value).__name__}, not a string: write it in quotes")
    if len(value) > MOST_CHARACTERS:
        raise DataError(f"{name} has {len(value):,} characters; at most {MOST_CHARACTERS:,} are read: split the row")
    if not value.strip():
        raise DataError(f"{name} is empty or only white space: give it a text, or remove the row")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{name} holds half of a surrogate pair (\\ud800 to \\udfff): write the whole character"
        ) from None
    return value


def _as_list(value: object, name: str) -> list[object]:
    """A list, or the list in the JSON text of a CSV cell."""
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
    """Other answers: None, one string, or a list of strings."""
    if value is None:
        return ()
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return (_text(value, name),)
    entries = _as_list(value, name) if not isinstance(value, str) or value.rstrip().endswith("]") else [value]
    return tuple(_text(entry, f"{name}[{index}]") for index, entry in enumerate(entries))


def _turns(value: object, name: str) -> tuple[Message, ...]:
    """Chat turns from a list of objects with role and content."""
    turns = []
    for index, entry in enumerate(_as_list(value, name)):
        place = f"{name}[{index}]"
        if not isinstance(entry, dict):
            raise DataError(f"{place} is a {type(entry).__name__}, not an object with role and content")
        role = entry.get("role", entry.get("from"))
        role = _OTHER_ROLES.get(role, role) if isinstance(role, str) else None
        if role not in ROLES:
            raise DataError(f"{place} has a role that is not known: allowed are {', '.join(ROLES)}")
        for key in _NOT_READ:
            if entry.get(key):
                raise DataError(f"{place} has {key}, which is not read: {_NOT_READ[key]}, or remove the row")
        key = "content" if "content" in entry or "value" not in entry else "value"
        turns.append(Message(role, _content(entry.get(key), f"{place}.{key}")))
    return tuple(turns)


def _content(value: object, name: str) -> str:
    """The text of a turn: a string, or a list of text parts, which are joined as templates join them."""
    if not isinstance(value, list):
        return _text(value, name)
    texts = []
    for index, part in enumerate(value):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise DataError(
                f'{name} is a list, and [{index}] is no text part: give a string or {{"type": "text", "text": ...}} parts, '
                "or remove the row"
            )
        texts.append(text)
    return _text("".join(texts), name)


def _split_chat(turns: tuple[Message, ...], name: str) -> tuple[tuple[Message, ...], str]:
    """Split a conversation into its prompt and the last turn, which must be the assistant's."""
    if not turns or turns[-1].role != "assistant":
        raise DataError(f"{name} does not end with an assistant turn: the last turn is the answer")
    if not any(turn.role == "user" for turn in turns[:-1]):
        raise DataError(f"{name} holds no user turn before the answer: give the question, or use the text format")
    return turns[:-1], turns[-1].content
