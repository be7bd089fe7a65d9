"""What somebody searches for: a person, a bad answer, or more rows like some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm_forget.errors import UserError

_MOST_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Query:
    """What to search for. Everything that is given counts: a row is a hit if any of it finds the row.

    Attributes:
        people: full names.
        aliases: other names of the same person.
        emails: addresses.
        identifiers: numbers that belong to the person: phone, IBAN, card, customer number.
        answers: texts that a model should not have written.
        questions: the questions that led to the answers, in their order; may be fewer.
        texts: texts of rows; more like these are searched.
        about: words that must be in one of a person's rows, which tell people of one name apart.
    """

    people: tuple[str, ...] = field(default=(), repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)
    emails: tuple[str, ...] = field(default=(), repr=False)
    identifiers: tuple[str, ...] = field(default=(), repr=False)
    answers: tuple[str, ...] = field(default=(), repr=False)
    questions: tuple[str, ...] = field(default=(), repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)
    about: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check that there is something to search for."""
        for option, values in self.given().items():
            for value in values:
                if not any(one.isalnum() for one in value):
                    raise UserError(f"{option} is empty: give it a text with at least one letter or digit")
                if len(value) > _MOST_CHARACTERS:
                    raise UserError(
                        f"{option} has {len(value):,} characters; at most {_MOST_CHARACTERS:,} are searched"
                    )
        for email in self.emails:
            if "@" not in email:
                raise UserError("--email is no address: it has no @; for another number or name give --id or --alias")
        if not (self.people or self.aliases or self.emails or self.identifiers or self.answers or self.texts):
            raise UserError(
                "nothing to search for: give --person NAME, --alias, --email, --id, --answer TEXT, --rows FILE, or --ask "
                "QUESTION with --model"
            )

    def given(self) -> Mapping[str, Sequence[str]]:
        """Option of the command → its values."""
        return {
            "--person": self.people,
            "--alias": self.aliases,
            "--email": self.emails,
            "--id": self.identifiers,
            "--answer": self.answers,
            "--question": self.questions,
            "--rows": self.texts,
            "--about": self.about,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names and aliases."""
        return tuple(dict.fromkeys((*self.people, *self.aliases)))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Each answer with its question before it."""
        questions = (*self.questions, *("" for _ in self.answers))
        return tuple(f"{question}\n{answer}".strip() for question, answer in zip(questions, self.answers, strict=False))
