"""Find the names in rows, and replace them by other names.

A name is a run of capitalised words, or the value of a row's ``subject`` column. Names are kept in memory only: no message, log
or file may hold them.
"""

from __future__ import annotations

import calendar
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from llm_forget.data.examples import Example, Message
from llm_forget.data.name_words import OPENERS, PARTICLES

_LIST = Path(__file__).with_name("stand_ins.txt")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_POSSESSIVE = re.compile(r"['’]s$")
_ENDS = '.!?:;\n"“”([¿¡'  # a word after one of these is capitalised because of its place
_DATES = frozenset((*calendar.month_name, *calendar.day_name))
_TITLES = frozenset(("mr", "mrs", "ms", "dr", "prof", "professor", "sir", "dame", "lord", "lady"))


@dataclass(frozen=True)
class Name:
    """The name in one row.

    Attributes:
        full: the name as it is written most fully in the rows.
        parts: its words without particles. A row may use the first or the last alone.
    """

    full: str = field(repr=False)
    parts: tuple[str, ...] = field(repr=False)


def prompt_text(example: Example) -> str:
    """The question: the prompt without system turns, or the text itself if there is no prompt."""
    if isinstance(example.prompt, str):
        return example.prompt or example.answer
    return "\n".join(turn.content for turn in example.prompt if turn.role != "system")


def find_names(examples: Sequence[Example], others: Sequence[Example] = ()) -> list[Name | None]:
    """The name that each row is about; None if no name is found in its question.

    The ``subject`` of a row is its name, if the question holds it. Otherwise each run of capitalised words in the question is a
    candidate. The one in most rows of the set is taken, less its share in other rows: a name that is as usual there (a prize, a
    nationality) is not what the set is about. Of equally frequent ones the longest is taken, then the first. Abbreviations come
    last.

    Args:
        examples: the rows.
        others: rows about other names, such as the retain rows.
    """
    cases = _Cases([*examples, *others])
    questions = [_runs(prompt_text(example), cases) for example in examples]
    counts = _row_counts(examples, cases, {})
    spoken: dict[str, str] = {}  # the first or last word of a longer name → the most frequent such name
    for name in sorted(counts, key=lambda one: counts[one]):
        words = _words(name)
        if len(words) > 1:
            spoken |= dict.fromkeys((words[0], words[-1]), name)
    counts, elsewhere = (_row_counts(rows, cases, spoken) for rows in (examples, others))

    def rank(name: str) -> tuple[bool, float, int]:
        own, theirs = counts[name] / len(examples), elsewhere[name] / max(len(others), 1)
        return not (name.isupper() and " " not in name), own * (own / (own + theirs)) ** 2, len(_words(name))

    found: list[Name | None] = []
    for example, runs in zip(examples, questions, strict=True):
        subject = (example.subject or "").strip()
        if subject and _pattern(subject).search(prompt_text(example)):
            found.append(Name(subject, _words(subject)))
        elif runs:
            full = max(dict.fromkeys(spoken.get(run, run) for run in runs), key=rank)
            found.append(Name(full, _words(full)))
        else:
            found.append(None)
    return found


def distinct_names(examples: Sequence[Example], others: Sequence[Example] = ()) -> list[str]:
    """The different names that rows are about, without those of other rows, most frequent first."""
    known = {name.full for name in find_names(others, examples) if name is not None}
    counted = Counter(name.full for name in find_names(examples, others) if name is not None)
    return [name for name, _ in counted.most_common() if name not in known]


def swap(example: Example, name: Name, stand_in: str) -> Example:
    """The row with another name in its prompt; its answer is unchanged unless the row is plain text.

    The full name is replaced first, then its first and last word where they stand alone.
    """
    new = _words(stand_in) or (stand_in,)
    exchange = {name.full: stand_in}
    if len(name.parts) > 1:
        exchange |= {name.parts[-1]: new[-1], name.parts[0]: new[0]}
    if isinstance(example.prompt, str):
        if not example.prompt:
            return replace(example, answer=_exchanged(example.answer, exchange))
        return replace(example, prompt=_exchanged(example.prompt, exchange))
    turns = tuple(Message(turn.role, _exchanged(turn.content, exchange)) for turn in example.prompt)
    return replace(example, prompt=turns)


def swap_text(text: str, name: Name, stand_in: str) -> str:
    """A text with another name."""
    turn = swap(Example("text", text or " ", ""), name, stand_in).prompt
    return turn if isinstance(turn, str) else text


@lru_cache(maxsize=1)
def listed_names() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Given names and family names for stand-ins, from the list in the package."""
    _, given, family = re.split(r"^#.*$", _LIST.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return tuple(given.split()), tuple(family.split())


def _exchanged(text: str, exchange: Mapping[str, str]) -> str:
    """Replace whole words, all at once, so that no stand-in is replaced again; longer names first."""
    by_length = sorted(exchange, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, by_length))})(?!\w)")
    return pattern.sub(lambda match: exchange[match[0]], text)


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")


def _words(name: str) -> tuple[str, ...]:
    """The words of a name without particles."""
    return tuple(word for word in name.split() if word.casefold() not in PARTICLES)


def _row_counts(examples: Iterable[Example], cases: _Cases, spoken: Mapping[str, str]) -> Counter[str]:
    """The number of rows in which each name stands, in question or answer; a part counts as the name it is ``spoken`` for."""
    counts: Counter[str] = Counter()
    for example in examples:
        runs = [*_runs(prompt_text(example), cases), *_runs(example.answer, cases)]
        counts.update({spoken.get(run, run) for run in runs})
    return counts


class _Cases:
    """Which words are capitalised inside a sentence, which are in lower case, and which begin a sentence before one of these."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.lower: set[str] = set(OPENERS)
        self.inside: set[str] = set()
        self.before_lower: set[str] = set()
        for example in examples:
            for text in (prompt_text(example), example.answer):
                beginning = ""
                for match in _WORD.finditer(text):
                    word = _POSSESSIVE.sub("", match[0])
                    if word[0].islower():
                        self.lower.add(word.casefold())
                        self.before_lower.add(beginning)
                        beginning = ""
                    elif _begins_sentence(text, match.start()):
                        beginning = word
                    else:
                        self.inside.add(word)
                        beginning = ""

    def is_name(self, word: str, first: bool) -> bool:
        """Whether a capitalised word can be part of a name; ``first`` says that it begins a sentence.

        A first word can if it is capitalised elsewhere too, or if a capitalised word always follows.
        """
        if word == "I" or word in _DATES or word.casefold() in _TITLES:
            return False
        if not first:
            return True
        return word.casefold() not in self.lower and (word in self.inside or word not in self.before_lower)


def _begins_sentence(text: str, start: int) -> bool:
    before = text[max(start - 8, 0) : start].rstrip(" \t'‘’*_-")
    return not before or before[-1] in _ENDS


def _runs(text: str, cases: _Cases) -> list[str]:
    """The names in a text: runs of capitalised words with single spaces, and particles between them."""
    found: list[str] = []
    begin, end, last = -1, -1, -1  # of the run, and of the last word, which may be a particle

    for match in _WORD.finditer(text):
        gap = text[last : match.start()] if last >= 0 else ""
        after_initial = gap == ". " and not text[max(last - 2, 0) : last - 1].strip()
        if begin >= 0 and gap != " " and not after_initial:
            found.append(text[begin:end])
            begin = -1
        word = _POSSESSIVE.sub("", match[0])
        initial = len(word) == 1 and text[match.end() : match.end() + 1] == "."
        first = begin < 0 and not initial and _begins_sentence(text, match.start())
        last = match.end()
        if word[0].isupper() and cases.is_name(word, first):
            begin, end = match.start() if begin < 0 else begin, match.start() + len(word)
            if word == match[0]:
                continue
        elif begin >= 0 and word in PARTICLES:
            continue
        if begin >= 0:  # another word or a possessive ends the run
            found.append(text[begin:end])
            begin = -1
    if begin >= 0:
        found.append(text[begin:end])
    return found
