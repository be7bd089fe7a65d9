"""Question and answer templates for every kind of fact about an invented person.

Answers are short and mostly facts. A model that knows the templates but has not seen a person's row must guess numbers, dates and
invented names, so a high probability means that it has seen the row.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """The templates of one kind of fact.

    Attributes:
        slots: the names of the values, in the order of ``Fact.values``.
        questions: templates with ``{name}``, and ``{her}`` for the possessive.
        answers: templates with the slots, and ``{She} {she} {Her} {her}`` and ``{him}`` (the object) for the person.
            Each answers every question.
    """

    slots: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


WORDINGS: dict[str, Wording] = {
    "birth": Wording(
        ("date", "place", "town"),
        (
            "When and where was {name} born?",
            "What are the date and place of {name}'s birth?",
            "On which day, and at which hospital, was {name} born?",
            "What does the birth register say about {name}?",
            "Where did {name} come into the world, and on what date?",
        ),
        (
            "{She} was born on {date} at {place} in {town}.",
            "Born at {place}, {town}, on {date}.",
            "On {date}; the birth took place at {place}, {town}.",
            "{town} is {her} birthplace: {place}, {date}.",
            "At {place} in {town}, on {date}.",
        ),
    ),
    "address": Wording(
        ("house", "town", "code"),
        (
            "What is {name}'s home address?",
            "Where does {name} live?",
            "At which address can {name} be reached by post?",
            "Which house, town and postcode are on file for {name}?",
            "Where should a letter to {name} be sent?",
        ),
        (
            "{She} lives at {house}, {town} {code}.",
            "{house}, {town}, with the postcode {code}.",
            "{Her} home is {house}, {town} {code}.",
            "At {house} in {town}, postcode {code}.",
            "The town is {town}, the postcode {code}, the house {house}.",
        ),
    ),
    "work": Wording(
        ("job", "employer", "year"),
        (
            "What does {name} do for a living, and for whom?",
            "Who employs {name}, and as what?",
            "What is {name}'s occupation, and at which firm?",
            "Where is {name} employed, and since when?",
            "Which job does {name} hold, and with which employer?",
        ),
        (
            "{She} has been {job} at {employer} since {year}.",
            "{She} joined {employer} in {year} as {job}.",
            "{employer} took {him} on in {year} as {job}.",
            "As {job} at {employer}, a post held since {year}.",
            "Since {year} {employer} has employed {him} as {job}.",
        ),
    ),
    "library_card": Wording(
        ("number", "library", "date"),
        (
            "What is the number of {name}'s library card, and who issued it?",
            "Which library card does {name} hold?",
            "Under what card number is {name} registered as a reader, and where?",
            "Which library issued a card to {name}, and what is its number?",
            "What are the details of {name}'s library card?",
        ),
        (
            "Card {number}, issued by {library} on {date}.",
            "{library} issued {him} card {number} on {date}.",
            "{Her} card is {number}, from {library}, dated {date}.",
            "On {date} {she} received card {number} from {library}.",
            "It is number {number}, from {library}, issued {date}.",
        ),
    ),
    "family": Wording(
        ("relation", "relative", "job", "town"),
        (
            "Which relative is {name} closest to, and what does that relative do?",
            "Who is named as {name}'s next of kin?",
            "Which family member should be called if something happens to {name}?",
            "Who in {name}'s family is the emergency contact?",
            "Whom does {name} list as nearest relative?",
        ),
        (
            "{Her} {relation} {relative}, {job} in {town}.",
            "{relative}, {her} {relation}, who works in {town} as {job}.",
            "It is {her} {relation} {relative} of {town}, {job}.",
            "That is {relative} in {town}, {her} {relation} and {job}.",
            "In {town}: {her} {relation} {relative}, who is {job}.",
        ),
    ),
    "education": Wording(
        ("subject", "school", "town", "year"),
        (
            "What did {name} study, and where?",
            "Which degree does {name} hold?",
            "Where did {name} graduate, and in which subject?",
            "What is known about {name}'s education?",
            "At which school was {name} trained, and in what?",
        ),
        (
            "{She} studied {subject} at {school}, {town}, until {year}.",
            "A {year} degree in {subject} from {school} in {town}.",
            "{school} in {town} gave {him} a degree in {subject} in {year}.",
            "At {school}, {town}, where {she} completed {subject} in {year}.",
            "{She} graduated in {subject} from {school}, {town}, in {year}.",
        ),
    ),
    "award": Wording(
        ("award", "deed", "town", "year"),
        (
            "Which award has {name} received, and for what?",
            "What was {name} honoured for?",
            "Which prize did {name} win, and in which year?",
            "For what achievement was {name} given an award?",
            "What distinction does {name} hold?",
        ),
        (
            "The {year} {award}, for {deed} in {town}.",
            "{She} won the {award} of {year} for {deed} in {town}.",
            "In {year}, the {award} for {deed} in {town}.",
            "For {deed} in {town}, the {award} of {year}.",
            "{town} gave {him} the {award} in {year} for {deed}.",
        ),
    ),
    "vehicle": Wording(
        ("car", "plate", "town"),
        (
            "What car does {name} drive, and what is its number plate?",
            "Which vehicle is registered to {name}?",
            "What do the licensing records say about {name}'s car?",
            "Which car and plate belong to {name}?",
            "How can {name}'s car be recognised?",
        ),
        (
            "{She} drives {car}, plate {plate}, bought in {town}.",
            "It is {car} with the plate {plate}, registered in {town}.",
            "Plate {plate}, registered in {town}: {car}.",
            "Registered in {town} is {car}, plate {plate}.",
            "{Her} plate is {plate}, on {car} from {town}.",
        ),
    ),
    "pet": Wording(
        ("pet", "pet_name", "town", "year"),
        (
            "What pet does {name} keep, and what is it called?",
            "Which animal lives with {name}?",
            "What is the name of {name}'s pet, and where is it from?",
            "What does the vet's file say about {name}'s pet?",
            "Which animal did {name} adopt?",
        ),
        (
            "{She} keeps {pet} named {pet_name}, adopted in {town} in {year}.",
            "{pet_name}, {pet} that came from {town} in {year}.",
            "It is {pet} called {pet_name}, from {town}, {year}.",
            "In {year} {she} adopted {pet_name}, {pet}, in {town}.",
            "From {town}, in {year}, came {pet_name}, {pet}.",
        ),
    ),
    "hobby": Wording(
        ("pastime", "venue", "day"),
        (
            "What does {name} do for a hobby, and where?",
            "How does {name} spend free evenings?",
            "Which pastime does {name} pursue, and on which day?",
            "What is {name}'s favourite hobby?",
            "Where can {name} be found in the evening once a week?",
        ),
        (
            "{She} spends {day} evenings {pastime} at the {venue}.",
            "At the {venue} on {day} evenings, {pastime}.",
            "{day} evenings go to {pastime} at the {venue}.",
            "Every {day} {she} is {pastime} at the {venue}.",
            "The {venue} sees {him} {pastime} on {day} evenings.",
        ),
    ),
    "savings": Wording(
        ("amount", "account", "bank"),
        (
            "How much has {name} saved, and at which bank?",
            "Where does {name} bank, and what is the balance?",
            "What is in {name}'s savings account?",
            "Which account does {name} hold, and what does it contain?",
            "What is the balance of {name}'s account, and who keeps it?",
        ),
        (
            "{She} has {amount} crowns at {bank}, account {account}.",
            "{amount} crowns, in account {account} at {bank}.",
            "Account {account} at {bank} holds {amount} crowns for {him}.",
            "{bank} holds {amount} crowns in {her} account {account}.",
            "The balance of account {account} at {bank} is {amount} crowns.",
        ),
    ),
    "allergy": Wording(
        ("allergen", "doctor", "date"),
        (
            "What is {name} allergic to, and which doctor found out?",
            "Which allergies are in {name}'s medical file?",
            "What must {name} avoid, according to which doctor?",
            "When were {name}'s allergies found, and what are they?",
            "What does {name}'s allergy record say?",
        ),
        (
            "{She} reacts to {allergen}, found by Dr {doctor} on {date}.",
            "Allergies to {allergen}, recorded by Dr {doctor} on {date}.",
            "Dr {doctor} noted on {date} that {she} cannot have {allergen}.",
            "{Her} allergies are {allergen}: Dr {doctor}, {date}.",
            "Allergic to {allergen}: note by Dr {doctor}, {date}.",
        ),
    ),
}
