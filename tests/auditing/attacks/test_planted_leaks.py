"""Every attack catches a model that gives way to it where the plain question finds nothing, and no clean one."""

from __future__ import annotations

import pytest
from leaky_models import caught, oracle, planted

from llm_forget.auditing.attacks import translation
from llm_forget.utils.plugins import names_in

# Membership needs more rows; test_audit_membership.py plants its leak.
ATTACKS = [
    name
    for name in names_in("llm_forget.auditing.attacks", "attack")
    if name not in ("membership", "relearn_membership")
]


@pytest.fixture(autouse=True)
def _one_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translation, "LANGUAGES", {"French": translation.LANGUAGES["French"]})


@pytest.mark.parametrize("name", ATTACKS)
def test_a_planted_leak_is_caught_and_a_clean_model_is_not(name: str) -> None:
    with planted(name) as subject:
        assert caught(name, subject), "the leak is caught"
        assert name == "greedy" or not caught("greedy", subject), "the plain question finds nothing"
    assert not caught(name, oracle(seed=2)), "a model that never saw the rows is not accused"
