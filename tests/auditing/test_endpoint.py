"""A model behind a server gives the scores it gives in this process; the key goes to the server and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from audited import BUDGET, ENCODING, tiny_pair
from openai_server import ALL, KEY, serving

from llm_forget.auditing.attack import Access
from llm_forget.auditing.attacks.greedy import Greedy
from llm_forget.auditing.attacks.membership import Membership
from llm_forget.auditing.endpoint import Endpoint, ServedSubject
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.errors import UserError


def served(url: str, target: LoadedSubject) -> ServedSubject:
    return ServedSubject(Endpoint(url, "served"), target.tokenizer, ENCODING, FORMS["merged_fp32"])


def test_scores_equal_those_in_process() -> None:
    rows, target, _ = tiny_pair()
    with serving(target) as (url, _):
        subject = served(url, target)
        assert subject.access == Access.CHAT | Access.TOKENS | Access.LOGPS
        for attack in (Greedy(), Membership()):
            here, there = attack.attack(target, rows, BUDGET), attack.attack(subject, rows, BUDGET)
            np.testing.assert_allclose(there.scores, here.scores, atol=1e-4)


def test_a_server_with_chat_only_gets_turns_and_gives_less_access() -> None:
    rows, target, _ = tiny_pair()
    with serving(target, ALL[1:]) as (url, seen):
        subject = served(f"{url}/v1/", target)
        assert subject.access == Access.CHAT
        np.testing.assert_allclose(
            Greedy().attack(subject, rows, BUDGET).scores, Greedy().attack(target, rows, BUDGET).scores
        )
        assert seen[-1]["messages"][0] == {"role": "system", "content": ""}


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, target, _ = tiny_pair()
    with serving(target, needs_key=True) as (url, _):
        with pytest.raises(UserError, match="answered 401; set the environment variable OPENAI_API_KEY"):
            served(url, target)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        subject = served(url, target)
        assert Greedy().attack(subject, rows, BUDGET).scores.mean() > 0.8
        assert KEY not in repr(vars(subject.endpoint))
    with pytest.raises(UserError, match="would be sent unencrypted"):
        Endpoint("http://example.com/v1", "served")
    Endpoint("https://example.com/v1", "served")


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://user:word@localhost"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="--endpoint"):
        Endpoint(url, "served")


def test_a_server_that_is_not_there_is_an_error_that_says_so() -> None:
    _, target, _ = tiny_pair()
    with pytest.raises(UserError, match="is the server running"):
        served("http://127.0.0.1:9", target)
