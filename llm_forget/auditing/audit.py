"""Audit a run: attacks × forms, compared with target, oracle and sham, with a grade. The command and eval/audit.py call this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_forget._version import __version__
from llm_forget.auditing.artefact import Artefact, artefact_of, encoding_of
from llm_forget.auditing.attack import Access, Attack, Budget, Rows
from llm_forget.auditing.fill import Filled, Plan, Seat, fill
from llm_forget.auditing.forecast import forecast
from llm_forget.auditing.forms import FORMS, Form, Quantiser
from llm_forget.auditing.grade import grade
from llm_forget.auditing.matrix import Cell, as_record, judge_cell
from llm_forget.auditing.results import AUDIT_NAME, CELLS_NAME, FOLDER_NAME, files_digests
from llm_forget.auditing.subject import LoadedSubject, Subject
from llm_forget.config import ModelConfig
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, Example, read_examples
from llm_forget.data.schedule import evenly
from llm_forget.errors import DataError, RecipeError, UserError
from llm_forget.model.load import frozen_dtype, load_tokenizer, locate_model
from llm_forget.runs import Run
from llm_forget.utils.build import build
from llm_forget.utils.digests import json_digest
from llm_forget.utils.files import write_record
from llm_forget.utils.lock import locked
from llm_forget.utils.plugins import find_class, names_in

PACKAGE = "llm_forget.auditing.attacks"
ROLES = ("model", "oracle", "target", "sham")
FORECAST: tuple[Quantiser, ...] = ("nf4", "int4_rtn", "gguf_q4")
# Without the forms that differ from these by less than rounding does; ``all`` names every form.
USUAL_FORMS = ("merged_bf16", "adapter_bf16", "int8", "nf4", "int4_rtn", "gguf_q4", "gguf_q8")
QUICK_FORMS = ("merged_bf16", "nf4")
_MOST_NEW_TOKENS = 64


@dataclass(frozen=True)
class AuditSettings:
    """What to try.

    Attributes:
        quick: a screening: the quick attacks on two forms with fewer rows.
        attacks: names or paths of attacks; None for all (of a screening: the quick ones).
        forms: names of forms, the served one first, or ("all",); None for the usual ones.
        rows: most rows of each set.
        budget: what an attacker can afford; ``max_new_tokens`` 0 takes the length of the answers.
        seed: seed of everything random.
        jobs: processes that share the work.
    """

    quick: bool = False
    attacks: tuple[str, ...] | None = None
    forms: tuple[str, ...] | None = None
    rows: int | None = None
    budget: Budget | None = None
    seed: int = 0
    jobs: int = 1

    @property
    def most_rows(self) -> int:
        """Most rows of each set."""
        return self.rows or (20 if self.quick else 40)

    def chosen_forms(self, *, adapter: bool) -> list[Form]:
        """The forms to try, without adapter forms for a model that has none.

        Raises:
            RecipeError: a form is unknown.
        """
        wanted = self.forms or (QUICK_FORMS if self.quick else USUAL_FORMS)
        wanted = tuple(FORMS) if wanted == ("all",) else wanted
        if unknown := [name for name in wanted if name not in FORMS]:
            raise RecipeError(f"unknown form {', '.join(unknown)}; the forms are {', '.join(FORMS)}")
        return [FORMS[name] for name in dict.fromkeys(wanted) if adapter or not FORMS[name].adapter]

    def chosen_attacks(self) -> dict[str, Attack]:
        """Name → attack. A path is named by its file."""
        names = self.attacks if self.attacks is not None else tuple(names_in(PACKAGE, "attack"))
        made = {Path(name).stem if name.endswith(".py") else name: _made(name) for name in names}
        if self.quick and self.attacks is None:
            made = {name: one for name, one in made.items() if one.quick}
        return made

    def chosen_budget(self, answer_tokens: int) -> Budget:
        """The budget for answers of a length."""
        given = self.budget or (Budget(tries=1, samples=4, steps=10) if self.quick else Budget())
        return replace(given, seed=self.seed, max_new_tokens=min(answer_tokens, _MOST_NEW_TOKENS))


def _made(name: str) -> Attack:
    found = find_class(PACKAGE, name, "attack")()
    if not isinstance(found, Attack):
        raise RecipeError(f"attack {name!r}: its class must derive from llm_forget.auditing.attack.Attack")
    return found


@dataclass(frozen=True)
class Models:
    """The audited model and what it is compared with."""

    model: Artefact
    target: Artefact | None = None
    oracle: Artefact | None = None
    sham: Artefact | None = None
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    run: Run | None = None

    def by_role(self) -> dict[str, Artefact]:
        """Role → model, for those that there are."""
        return {role: one for role in ROLES if (one := getattr(self, role)) is not None}


def find_models(
    run: str | Path,
    *,
    target: str | Path | None = None,
    oracle: str | Path | None = None,
    sham: str | Path | None = None,
    base: str | None = None,
) -> Models:
    """The models of an audit.

    Args:
        run: run folder, or a plain model folder.
        target: run or model folder of the model before unlearning; by default the model that the run's adapter is for.
        oracle: run or model folder of a model that never saw the forget rows.
        sham: run of the same recipe on other rows.
        base: the model that the run's adapter was trained on, if it has moved.
    """
    own, found = artefact_of(run, base=base)
    given = {role: artefact_of(path, base=base)[0] for role, path in
             (("target", target), ("oracle", oracle), ("sham", sham)) if path is not None}  # fmt: skip
    before = given.get("target")
    if before is None and own.adapter is not None:
        before = Artefact("target", own.model)
    return Models(own, before, given.get("oracle"), given.get("sham"), encoding_of(found), found)


def read_rows(
    models: Models, most: int, given: Mapping[str, DataSource | Sequence[Example] | None], notes: list[str]
) -> Rows:
    """The rows of an audit, evenly spread over each set.

    Args:
        models: the models; the audited run's recipe names its sets.
        most: most rows of a set.
        given: forget, holdout, retain → rows or their file, instead of those in the recipe.
        notes: gets lines about sets that are missing.

    Raises:
        DataError: there are no forget rows, or fewer than two.
    """
    recipe = (models.run.recipe.get("data") if models.run else None) or {}
    sets: dict[str, tuple[Example, ...]] = {}
    for name in ("forget", "holdout", "retain"):
        source = given.get(name)
        if source is None and isinstance(recipe, dict) and isinstance(recipe.get(name), dict):
            source = build(DataSource, recipe[name], f"the run's recipe, data.{name}")
            if name != "forget" and not Path(source.path).exists():
                notes.append(f"the {name} rows of the recipe, {source.path}, are not here; give them with --{name}")
                source = None
        if source is None:
            found: Sequence[Example] = ()
        elif isinstance(source, DataSource):
            found = read_examples(source, notes)
        else:
            found = source
        sets[name] = spread(found, most)
    if len(sets["forget"]) < 2:
        raise DataError(
            f"{len(sets['forget'])} forget rows; an audit needs two or more: give the file with --forget, or a run whose "
            "recipe names it"
        )
    return Rows(sets["forget"], sets["holdout"], sets["retain"])


def spread(found: Sequence[Example], most: int) -> tuple[Example, ...]:
    """At most so many examples, evenly spread, each text once."""
    unique = list({one.id: one for one in found}.values())
    return tuple(unique[place] for place in evenly(len(unique), most))


def answer_tokens(tokenizer: Any, rows: Rows, encoding: EncodingConfig) -> int:
    """Length of the answers that 90 % of the forget rows do not exceed, in tokens with the end token."""
    encoded = encode_all(tokenizer, list(rows.forget), replace(encoding, truncate=not encoding.chunk), role="forget")[0]
    return max(4, int(np.quantile([row.answer_length for row in encoded], 0.9)))


def seats_of(models: Models, forms: Sequence[Form], encoding: EncodingConfig, cells: Path) -> list[Seat]:
    """Every model in every form, form by form. Cells of target and oracle lie with their run."""
    seats = []
    for form in forms:
        for role, one in models.by_role().items():
            home = cells if role == "model" or one.home is None else _home(one.home, cells)
            access, before = LoadedSubject.access, None
            if models.target is not None:
                access, before = access | Access.TARGET, models.target.digest
            opener = Opener(one, form, encoding, models.target)
            merged = FORMS[form.name.replace("adapter_", "merged_")] if form.adapter and one.adapter is None else None
            seats.append(Seat(role, form, one.digest, opener, access, home, before, merged))
    return seats


@dataclass(frozen=True)
class Opener:
    """Loads a model in a form, in any process. Its subject can load the target too."""

    artefact: Artefact
    form: Form
    encoding: EncodingConfig
    target: Artefact | None = None

    def __call__(self) -> Subject:
        """The subject."""
        model, tokenizer = self.artefact.load(self.form)
        subject = LoadedSubject(model, tokenizer, self.encoding, self.form)
        target, whole = self.target, FORMS["merged_bf16" if self.form.dtype == "bfloat16" else "merged_fp32"]
        if target is not None:
            subject.before = (lambda: model) if target is self.artefact else (lambda: target.load(whole)[0])
        return subject


def _home(folder: Path, otherwise: Path) -> Path:
    """The folder for the cells of another run, if it can be written."""
    home = folder / FOLDER_NAME / CELLS_NAME
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".writable"
        probe.touch()
        probe.unlink()
    except OSError:
        return otherwise
    return home


def audit_run(
    models: Models,
    rows: Rows,
    settings: AuditSettings,
    *,
    output: Path,
    say: Callable[[str], None] = lambda _: None,
    served: Callable[[Any, Form], Subject] | None = None,
    served_name: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Audit a model and write ``OUTPUT/audit.json``.

    Args:
        models: the models.
        rows: the rows.
        settings: what to try.
        output: the folder of the result and the cells.
        say: gets lines about the progress.
        served: makes the subject of the audited model from tokenizer and form, for a model behind a server; the controls are
            loaded in the first form.
        served_name: what identifies the served model, for its cells.
        notes: notes for the result.

    Returns:
        The content of the file.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with locked(output, "the audit's folder"):
        return _audit_run(models, rows, settings, output, say, served, served_name, notes)


def _audit_run(
    models: Models,
    rows: Rows,
    settings: AuditSettings,
    output: Path,
    say: Callable[[str], None],
    served: Callable[[Any, Form], Subject] | None,
    served_name: str,
    notes: Sequence[str],
) -> dict[str, Any]:
    attacks = settings.chosen_attacks()
    forms = settings.chosen_forms(adapter=models.model.adapter is not None)
    if not attacks or not forms:
        raise UserError("no attack or no form is left; name some with --attacks and --forms")
    tokenizer = load_tokenizer(models.model.model)
    budget = settings.chosen_budget(answer_tokens(tokenizer, rows, models.encoding))
    where = f"{'cuda' if torch.cuda.is_available() else 'cpu'} {frozen_dtype(ModelConfig('any'))}"
    plan = Plan(attacks, rows, budget, models.encoding, where)
    cells = output / CELLS_NAME
    if served is None:
        seats = seats_of(models, forms, models.encoding, cells)
    else:
        seats = _served_seats(models, forms[0], tokenizer, served, served_name, cells)
    same = models.oracle is not None and models.oracle.digest == models.model.digest
    record = {
        "schema": 1,
        "llm_forget": __version__,
        "model": models.model.name,
        "digests": {role: one.digest for role, one in models.by_role().items()},
        "files": {} if models.model.home is None else files_digests(models.model.home),
        "served": served_name or None,
        "settings": {
            "quick": settings.quick,
            "attacks": {name: _described(one) for name, one in attacks.items()},
            "forms": {seat.form.name: seat.form.words for seat in seats},
            "budget": asdict(budget),
            "rows": {"forget": len(rows.forget), "holdout": len(rows.holdout), "retain": len(rows.kept)},
            "rows_digest": json_digest([[row.id for row in part] for part in (rows.forget, rows.holdout, rows.kept)]),
            "encoding": asdict(models.encoding),
        },
        "forecast": _forecasts(models),
        "notes": list(notes),
    }

    def write(filled: Filled, complete: bool) -> dict[str, Any]:
        matrix = judge(filled, attacks)
        graded = grade(matrix, same_as_oracle=same)
        done = {
            **record,
            "complete": complete,
            "grade": asdict(graded),
            "cells": [as_record(one) for one in matrix],
            "seconds": round(sum(filled.seconds.values()), 1),
        }
        write_record(output / AUDIT_NAME, done)
        return done

    def keep(filled: Filled) -> None:
        write(filled, False)

    jobs = 1 if served is not None else settings.jobs
    filled = fill(plan, seats, say, jobs=jobs, after_form=keep)
    if filled.kept:
        say(f"{filled.kept} cells were known already")
    return write(filled, True)


def _forecasts(models: Models) -> dict[str, Any]:
    """Quantiser → what rounding leaves of the update, from files alone; empty if the files of both models are not here."""
    before, after = models.target, models.model.adapter
    if before is None or before.adapter is not None or before.digest == models.model.digest:
        return {}
    base = locate_model(before.model.name)
    found: dict[str, Any] = {}
    for quantiser in FORECAST:
        try:
            one = forecast(base, after or locate_model(models.model.model.name), quantiser)
        except UserError:  # a package is missing, or the files are packed
            continue
        if one is not None:
            blocks = {str(block): round(kept, 4) for block, kept in one.by_block().items()}
            found[quantiser] = {"ratio": one.ratio, "kept": one.kept, "moved": one.moved, "blocks": blocks}
    return found


def _served_seats(
    models: Models,
    form: Form,
    tokenizer: Any,
    served: Callable[[Any, Form], Subject],
    name: str,
    cells: Path,
) -> list[Seat]:
    """The served model, and its controls in the same form in this process."""
    behind = replace(form, name="served", words=f"behind a server, controls {form.words}", adapter=False)
    subject = served(tokenizer, behind)
    others = [
        replace(seat, form=behind) for seat in seats_of(models, [form], models.encoding, cells) if seat.role != "model"
    ]
    digest = json_digest([name, models.model.digest])
    return [Seat("model", behind, digest, lambda: subject, subject.access, cells), *others]


def judge(filled: Filled, attacks: dict[str, Attack]) -> list[Cell]:
    """The matrix of the cells so far: form by form, attacks in order."""
    forms = list(dict.fromkeys(form for _, form, role in filled.cells if role == "model"))
    found = []
    for form in forms:
        for name, attack in attacks.items():
            if (name, form, "model") not in filled.cells:
                continue
            own = {role: filled.cells[name, form, role] for role in ROLES if (name, form, role) in filled.cells}
            found.append(judge_cell(name, attack.group, form, own, filled.seconds.get((name, form, "model"), 0.0)))
    return found


def _described(attack: Attack) -> dict[str, Any]:
    lines = (type(attack).__doc__ or "").strip().splitlines()
    needs = [one.name.lower() for one in attack.needs if one.name]
    return {"group": attack.group, "needs": needs, "source": attack.source, "what": lines[0] if lines else ""}
