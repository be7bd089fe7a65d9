"""The contract of every file in `llm_forget/auditing/attacks`. New attacks are found automatically."""

from __future__ import annotations

import dataclasses
import importlib
import re
from typing import Any, get_args

import numpy as np
import pytest
from audited import BUDGET, ENCODING, tiny_pair

from llm_forget.auditing.attack import Access, Attack, Group, Leaks
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.plugins import find_class, names_in

PACKAGE = "llm_forget.auditing.attacks"
ATTACKS = names_in(PACKAGE, "attack")
every_attack = pytest.mark.parametrize("name", ATTACKS)


def made(name: str) -> Attack:
    return find_class(PACKAGE, name, "attack")()


class NoWeights(LoadedSubject):
    """What a server allows: no weights, and only the access that an attack declares."""

    def __init__(self, of: LoadedSubject, access: Access) -> None:
        super().__init__(of.model, of.tokenizer, ENCODING, of.form)
        self._inner, self.model, self.access = of.model, None, access

    def _complete(self, prompts: Any, max_new_tokens: int) -> list[str]:
        return self._with(super()._complete, prompts, max_new_tokens)

    def _sampled(self, *given: Any) -> list[list[str]]:
        return self._with(super()._sampled, *given)

    def _score(self, given: Any) -> Any:
        assert Access.LOGPS in self.access, "it scores tokens but does not declare LOGPS"
        return self._with(super()._score, given)

    def _with(self, call: Any, *given: Any) -> Any:
        self.model = self._inner
        try:
            return call(*given)
        finally:
            self.model = None


@every_attack
def test_declares_what_it_is(name: str) -> None:
    attack = made(name)
    assert isinstance(attack, Attack)
    others = [base for base in type(attack).__mro__[1:] if base.__module__.startswith("llm_forget.auditing.attacks.")]
    assert not others, "an attack derives from Attack or from a class in auditing/tools, and not from another attack"
    assert type(attack).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert attack.group in get_args(Group)
    assert attack.needs
    assert attack.source == "llm-forget" or re.search(r"arXiv:\d{4}\.\d{4,5}|openreview", attack.source)
    assert not attack.changes_model or Access.WEIGHTS in attack.needs
    assert importlib.import_module(type(attack).__module__).__doc__
    assert any(not attack.refuses(form) for form in FORMS.values()), "it applies to no form"
    assert all(reason == "" or reason[0].islower() for reason in map(attack.refuses, FORMS.values()))


@every_attack
def test_repeats_itself_and_leaves_the_model_as_it_was(name: str) -> None:
    attack = made(name)
    rows, target, _ = tiny_pair()
    before = weights_digest(dict(target.model.state_dict()))
    first = attack.attack(target, rows, BUDGET)
    assert weights_digest(dict(target.model.state_dict())) == before
    assert not any(value.requires_grad for value in target.model.parameters())
    assert not target.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.model.modules())
    assert isinstance(first, Leaks)
    assert set(first.ids) <= {row.id for row in rows.forget}
    assert len(set(first.ids)) == len(first.ids) >= len(rows.asked)
    assert (first.nonmembers is None) or len(first.nonmembers) == len(rows.holdout)
    words = {word for row in rows.forget for word in re.findall(r"\w{4,}", row.answer)}
    assert not words & set(re.findall(r"\w+", str(first.chosen))), "chosen settings hold no text of the data"
    fresh = LoadedSubject(target.model, target.tokenizer, ENCODING, target.form)
    np.testing.assert_allclose(attack.attack(fresh, rows, BUDGET).scores, first.scores, atol=1e-5)


@every_attack
def test_needs_no_more_access_and_rows_than_it_declares(name: str) -> None:
    attack = made(name)
    rows, target, _ = tiny_pair()
    unused = {part: () for part in ("holdout", "kept") if part not in attack.uses}
    subject = target if Access.WEIGHTS in attack.needs else NoWeights(target, attack.needs)
    attack.attack(subject, dataclasses.replace(rows, **unused), BUDGET)
