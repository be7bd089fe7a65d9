"""Test that templates which never end, or make huge texts, are refused within seconds, and ordinary ones are not."""

from __future__ import annotations

import time

import pytest

from llm_forget.data.encode import EncodingConfig, encode
from llm_forget.data.examples import Example, Message
from llm_forget.data.template import turn_end
from llm_forget.data.template_trial import problem_with
from llm_forget.errors import DataError
from llm_forget.testing import CHATML, tiny_tokenizer

EXAMPLE = Example("x", (Message("user", "Q"),), "A", source="f:1")
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def bombs() -> dict[str, str]:
    double = "{% set s = s ~ s %}"
    return {
        "nested ranges": LOOP,
        "loops over the text": "{% for m in messages %}" + "{% for a in m.content %}" * 4 + "x" + "{% endfor %}" * 5,
        "recursive macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "a constant": "{{ 'x' * 10000000000 }}",
        "padding": "{{ 'x' | center(10000000000) }}",
        "doubling": "{% set s = 'ab' %}" + double * 40 + "{{ s }}",
        "a power": "{{ 9 ** 99999999 }}",
        "a million letters": "{{ 'x' * 1000000 }}" + CHATML,
        "only for many turns": CHATML + "{% if messages | length > 3 %}" + LOOP + "{% endif %}",
        "repeats the text": CHATML + "{% for i in range(500) %}{{ messages[0].content }}{% endfor %}",
    }


SLOW = ("loops over the text", "recursive macro", "a power", "only for many turns")  # seconds of computing


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in bombs()])
def test_a_template_without_bounds_is_refused_in_time(name: str) -> None:
    started = time.monotonic()
    tokenizer = tiny_tokenizer(chat_template=bombs()[name])
    with pytest.raises(DataError, match=r"the chat template cannot be used: it (?:takes|makes)"):
        encode(tokenizer, EXAMPLE, EncodingConfig())
    assert turn_end(tokenizer) is None
    encode(tokenizer, EXAMPLE, EncodingConfig(chat_template=False))
    assert time.monotonic() - started < 35


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{%- if tools %}{{ tools | tojson(indent=4) }}{% endif %}{% generation %}x{% endgeneration %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'system' %}{% continue %}"
        "{% endif %}{{ m.content }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ bos_token + strftime_now('%d') }}",
        "not {% a template",
        "x" * 20_000 + CHATML,
    ],
)
def test_ordinary_templates_have_no_problem(template: str) -> None:
    assert problem_with(template, {"bos_token": "<s>"}) == ""
