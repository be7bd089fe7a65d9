"""Canonical JSON against the examples of RFC 8785, and the refusal of every other form."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_forget.certificates.canonical import canonical, parse_canonical
from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson

# Appendix B of RFC 8785: the bits of a float, and how it is written.
NUMBERS = {
    "0000000000000000": "0", "8000000000000000": "0", "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324", "7fefffffffffffff": "1.7976931348623157e+308", "4340000000000000": "9007199254740992",
    "4430000000000000": "295147905179352830000", "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23", "44b52d02c7e14af7": "1.0000000000000001e+23", "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000", "444b1ae4d6e2ef50": "1e+21", "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001", "41b3de4355555553": "333333333.3333332", "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
}  # fmt: skip


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers_are_written_as_in_the_rfc(bits: str, text: str) -> None:
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(value) == text.encode()


def test_keys_are_in_the_order_of_their_utf16_units() -> None:
    """Section 3.2.3 of RFC 8785."""
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    assert list(json.loads(canonical(dict.fromkeys(names, 0)))) == [names[at] for at in (1, 3, 5, 6, 0, 4, 2)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.integers(-9, 9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
@example(1.0000000000000001e18)
def test_what_is_written_is_read_back(value: object) -> None:
    try:
        content = canonical(value)
    except UserError:  # half of a surrogate pair
        return
    assert canonical(parse_canonical(content)) == content
    # an integer of many digits is read as the float that wrote it
    assert parse_canonical(content) == json.loads(
        content, parse_int=lambda text: int(text) if len(text) <= 18 else float(text)
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        '{"b":1,"a":2}',
        '{"a":1,"a":1}',
        "1.0",
        "1e1",
        '"\\u0041"',
        "[1]\n",
        '{"a":NaN}',
        "é".encode("latin-1"),
    ],
)
def test_other_forms_are_refused(text: str | bytes) -> None:
    with pytest.raises(NotPlainJson):
        parse_canonical(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**53 + 1, {1: 2}, {"a": {1}}, "\ud800"])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(UserError):
        canonical(value)
