"""A model behind a server gives the scores it gives in this process; the key goes to the server and nowhere else."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from audited import BUDGET, ENCODING, tiny_pair
from openai_server import ALL, KEY, Handler, serving

from llm_forget.auditing.attack import Access
from llm_forget.auditing.attacks.greedy import Greedy
from llm_forget.auditing.attacks.membership import Membership
from llm_forget.auditing.endpoint import ServedSubject
from llm_forget.auditing.forms import FORMS
from llm_forget.auditing.subject import LoadedSubject
from llm_forget.errors import UserError
from llm_forget.evaluation.passes.served import listed_moments
from llm_forget.utils.endpoint import Endpoint

LN2 = math.log(2)


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


def test_moments_of_the_vocabulary_from_the_likeliest_tokens_by_hand() -> None:
    assert listed_moments([math.log(0.5), math.log(0.25)], 6) == pytest.approx((-2 * LN2, math.sqrt(1.5) * LN2))
    assert listed_moments([0.0, -1e9], 6) == pytest.approx((0.0, 0.0))


def test_the_moments_of_a_server_come_close_to_the_real_ones() -> None:
    """Twenty of 290 tokens are listed."""
    rows, target, _ = tiny_pair()
    with serving(target) as (url, _):
        there = served(url, target).score(rows.holdout)
    here = target.score(rows.holdout)
    np.testing.assert_allclose(there.vocab_mean, here.vocab_mean, atol=0.1)
    np.testing.assert_allclose(there.vocab_std, here.vocab_std, atol=0.1)
    np.testing.assert_array_equal(there.hits, here.hits)


def test_a_server_that_lists_no_other_tokens_still_gives_log_probs(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, target, _ = tiny_pair()

    def refuses(self: Handler, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("prompt_logprobs"):
            raise KeyError("too many log-probs")
        return completions(self, body)

    completions = Handler.completions
    monkeypatch.setattr(Handler, "completions", refuses)
    with serving(target) as (url, _):
        subject = served(url, target)
        assert Access.LOGPS in subject.access
        found = subject.score(rows.forget)
    np.testing.assert_allclose(found.token_logps, target.score(rows.forget).token_logps, atol=1e-4)
    assert np.isnan(found.vocab_std).all()


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


@pytest.mark.parametrize(("resets", "answers"), [(3, True), (4, False)])
def test_a_connection_that_is_reset_is_tried_again(resets: int, answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, tried = Endpoint("http://localhost:9", "served"), []

    def opened(*_: Any, **__: Any) -> Any:
        tried.append(1)
        if len(tried) <= resets:
            raise ConnectionResetError
        return io.BytesIO(b'{"data": [{"id": "served"}]}')

    monkeypatch.setattr(endpoint._opener, "open", opened)
    monkeypatch.setattr("time.sleep", lambda _: None)
    if answers:
        assert endpoint.models() == {"served": {"id": "served"}}
    else:
        with pytest.raises(UserError, match="ConnectionResetError"):
            endpoint.models()
    assert len(tried) == 4
